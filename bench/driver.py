"""What does one push cost here: the driver over our wire, over httpx, and stripe-python as it comes?

    python bench/driver.py [--requests 3000] [--at-once 1 20] [--repeat 3]

The server is another process on the other core and does nothing but answer each meter event with its receipt. Each row is checked: every
send was delivered. `cpu_us_per_send` is this process alone, user and system, sockets and JSON with it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import stripe
import trio
from common import generator_cores, pin_to, progress, publish, report, server_core

from engine.core.billing import Delivered, PushRequest
from engine.drivers.billing import StripeBilling, api_version
from engine.drivers.h11_wire import H11Wire
from engine.drivers.httpx_wire import HttpxWire
from engine.drivers.wire import Wire

KEY = "sk_test_a_key_of_nobody"
IDENTIFIER = "0123456789abcdef0123456789abcdef"
RECEIPT = (
    b'{"object":"billing.meter_event","identifier":"%s","event_name":"api_calls","created":1790000000,'
    b'"timestamp":1790000040,"livemode":false,"payload":{"value":"5","stripe_customer_id":"cus_1"}}'
    % IDENTIFIER.encode()
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Thu, 26 Nov 2026 10:00:00 GMT\r\n"
    b"Request-Id: req_0123456789abcd\r\nStripe-Version: 2026-10-28.endive\r\nContent-Length: %d\r\n\r\n%s"
    % (len(RECEIPT), RECEIPT)
)
REQUEST = PushRequest(
    driver="meter",
    identifier=IDENTIFIER,
    value="5",
    timestamp_s=1_790_000_040,
    api_version=api_version("meter"),
    event_name="api_calls",
    customer="cus_1",
)


async def answer_all(stream: trio.SocketStream) -> None:
    """One receipt for each request that has come whole."""
    received = b""
    while data := await stream.receive_some(65_536):
        received += data
        while True:
            head, mark, body = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if not mark or len(body) < length:
                break
            received = body[length:]
            await stream.send_all(ANSWER)


async def serve() -> None:
    """Listen on a free port of 127.0.0.1, and say which."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(answer_all, [listener])


def over(wire: Wire, url: str) -> Callable[[], Awaitable[None]]:
    """One send by the driver."""
    billing = StripeBilling(KEY, api_base=url, wire=wire)

    async def send() -> None:
        [outcome] = await billing.send([REQUEST], [0])
        assert isinstance(outcome, Delivered), outcome

    return send


def as_it_comes(url: str) -> Callable[[], Awaitable[None]]:
    """One send by the library with its own HTTPX client and the method made for meter events."""
    client = stripe.StripeClient(
        KEY, http_client=stripe.HTTPXClient(), base_addresses={"api": url}, max_network_retries=0
    )

    async def send() -> None:
        event = await client.v1.billing.meter_events.create_async(
            {
                "event_name": "api_calls",
                "identifier": IDENTIFIER,
                "timestamp": REQUEST.timestamp_s,
                "payload": {"stripe_customer_id": "cus_1", "value": "5"},
            },
            {"idempotency_key": f"{IDENTIFIER}:0", "stripe_version": REQUEST.api_version},
        )
        assert event.identifier == IDENTIFIER

    return send


async def measure(
    name: str, send: Callable[[], Awaitable[None]], requests: int, at_once: int
) -> dict[str, Any]:
    """Processor time and pace of that many sends, `at_once` under way."""
    left = requests

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await send()

    for _ in range(50):
        await send()
    cpu, began = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(lane)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    row = {
        "way": name,
        "at_once": at_once,
        "sends_per_second": round(requests / seconds),
        "cpu_us_per_send": round(cpu / requests * 1e6),
    }
    progress(str(row))
    return row


async def measure_all(url: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way in turn, so that what else the machine does falls on all."""
    h11_wire, httpx_wire = H11Wire(), HttpxWire()
    ways = {
        "driver, our wire": over(h11_wire, url),
        "driver, httpx": over(httpx_wire, url),
        "stripe-python as it comes": as_it_comes(url),
    }
    results = [
        await measure(name, send, options.requests, at_once)
        for at_once in options.at_once
        for _ in range(options.repeat)
        for name, send in ways.items()
    ]
    await h11_wire.aclose()
    await httpx_wire.aclose()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000, help="sends a row")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--repeat", type=int, default=3, help="measure each row so many times")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="the result file")
    options = parser.parse_args()
    if options.serve:
        pin_to(generator_cores())
        trio.run(serve)
        return
    # httpx deprecates how the library's own client gives it a body.
    warnings.simplefilter("ignore", DeprecationWarning)
    os.sched_setaffinity(0, {server_core()})
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            results = trio.run(measure_all, f"http://127.0.0.1:{port}", options)
        finally:
            server.terminate()
    publish(report("driver", results), options.output)


if __name__ == "__main__":
    main()
