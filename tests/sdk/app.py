"""An app that meters, as a process of its own: for tests of what a crash, an exit and a fork leave behind.

    python tests/sdk/app.py URL TENANT MODE [SPOOL]

Rules it keeps: it says each key on standard output once `track` has returned. It must not know who ends it, or when.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from stripemeter import StripeMeterClient


def say(text: str) -> None:
    """A line in one write, so that a kill cuts none in half."""
    os.write(1, f"{text}\n".encode())


def make(url: str, tenant: str, spool: str | None, **options: Any) -> StripeMeterClient:
    """The app's client."""
    return StripeMeterClient(
        url,
        tenant,
        spool=spool,
        on_error=lambda failure: say(f"told {failure.kind} {len(failure.events)}"),
        **{
            "flush_interval_seconds": 0.02,
            "batch_events_max": 20,
            "retry_seconds_first": 0.01,
            "retry_seconds_max": 0.1,
            "spool_lease_seconds": 0.5,
            **options,
        },
    )


def endless(client: StripeMeterClient) -> None:
    """Track until killed."""
    while True:
        say(client.track("calls", "cora", 1).idempotency_key)


def leave(client: StripeMeterClient) -> None:
    """Track and end in order, without closing."""
    for _ in range(50):
        say(client.track("calls", "cora", 1).idempotency_key)


def fork(client: StripeMeterClient) -> None:
    """Parent and children track at once; the children end by `os._exit` after a flush of their own."""
    for _ in range(10):
        say(client.track("calls", "cora", 1).idempotency_key)
    client.flush(10)
    busy = threading.Thread(target=lambda: [client.track("calls", "cora", 1) for _ in range(500)])
    busy.start()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            settled = [client.statistics().queued == 0]
            for _ in range(25):
                say(client.track("calls", "cora", 1).idempotency_key)
            settled.append(client.flush(20))
            settled.append(client.close())
            os._exit(0 if all(settled) else 1)
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    busy.join()
    say(f"children {codes}")
    client.close()


def main(url: str, tenant: str, mode: str, spool: str | None = None) -> None:
    """Do what the mode says."""
    client = make(url, tenant, spool)
    if mode == "endless":
        endless(client)
    elif mode == "leave":
        leave(client)
    elif mode == "fork":
        fork(client)
    elif mode == "recover":
        say(f"settled {client.flush(30)} {client.statistics().queued}")
        client.close()
    elif mode == "killed at once":
        leave(client)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
