"""The composition root: settings in, a running server out. The only place that names Hypercorn (and `gateway.opening` LMDB).

How it stops: SIGTERM or SIGINT ends accepting, what is in flight is answered, the tree of
`engine.actors.supervisor` drains from the inside out; whoever still holds a connection after the grace period is
cut off by a hard exit, which loses nothing: what was acknowledged is in the log. A second signal exits at once.
It must not know what any endpoint does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from random import Random
from typing import NoReturn, TextIO

import hypercorn
import hypercorn.trio
import structlog
import trio

from engine.actors.anchorer import Anchorer
from engine.actors.supervisor import Meter
from engine.config import Settings
from engine.errors import StartRefused
from engine.ports import Fatal
from engine.witness.canonical import Signer
from gateway import collector, log_output
from gateway.anchoring import store_of
from gateway.asgi import create_asgi
from gateway.auth import Access
from gateway.context import Gateway
from gateway.data_directory import DataDirectory
from gateway.hypercorn_repairs import repair
from gateway.lane import LaneServer
from gateway.lane_answers import LaneAnswers
from gateway.lane_internals import difference, put_in
from gateway.lane_poll import LanePoll
from gateway.lane_watch import Watch, connections_max
from gateway.logging_setup import adopt_hypercorn
from gateway.metrics import Metrics
from gateway.opening import first_of, open_meter
from gateway.stripe_advice import advice
from gateway.stripe_ways import open_ways
from wal.log import Head

_logger = structlog.get_logger("stripemeter.server")
EXIT_STOPPED, EXIT_REFUSED, EXIT_FATAL = 0, 1, 3
_SWITCH_INTERVAL_SECONDS = 0.0005
"""With the default of 5 ms a busy loop stretches a 0.4 ms commit in a thread to 8 ms."""
_HEAD_SECONDS_MAX = 5
_IDLE_SECONDS_MAX = 30
_HEAD_BYTES_MAX = 16 << 10


def serve(settings: Settings) -> int:
    """Run the server until a signal or a fatal error; the exit code.

    Raises StartRefused (another server has the directory, or its log can't be used).
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    directory = DataDirectory(settings.data_path)
    directory.lock()
    try:
        meter = open_meter(settings, directory)
        access = Access.from_settings(settings, directory, meter)
        signer = Signer(directory.signing_seed())
        anchorer = _anchorer_of(settings, meter, signer)
        gateway = Gateway(
            meter,
            settings,
            access,
            Metrics(meter),
            meter.clock,
            signer=signer,
            anchorer=anchorer,
        )
        collector.pause()
        return trio.run(_run, gateway, directory)
    finally:
        directory.release()


def _anchorer_of(settings: Settings, meter: Meter, signer: Signer) -> Anchorer | None:
    """The anchorer that the settings ask for; None: they ask for none. Raises StartRefused."""
    if settings.anchor is None:
        return None

    def head() -> Head | None:
        return meter.log.head() if meter.phase == "ready" else None

    return Anchorer(
        store_of(settings.anchor, meter.clock),
        signer=signer,
        head=head,
        log_id=lambda: meter.log_id,
        clock=meter.clock,
        rng=Random(meter.ids.token(8)),
        interval_us=settings.anchor_interval_us,
    )


async def _run(gateway: Gateway, directory: DataDirectory) -> int:
    stop = trio.Event()
    meter = gateway.meter
    try:
        async with (
            trio.open_nursery() as signals,
            open_ways(gateway.settings, directory.simulator_path, meter.clock, meter.ids) as ways,
        ):
            signals.start_soon(_stop_on_signal, gateway, stop)
            meter.connect(ways.billing)
            gateway.ways = ways
            if gateway.anchorer is not None:
                signals.start_soon(gateway.anchorer.run)
            await meter.run(partial(_serve_http, gateway, stop), on_ready=partial(_ready, gateway))
            signals.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Not `except*`: what is raised there comes out in a group, and the command line wants the one line.
        fatal, _ = group.split(Fatal)
        if fatal is not None:
            _exit_fatal(first_of(fatal))
        refused, others = group.split(StartRefused)
        if refused is None or others is not None:
            raise
        raise first_of(refused) from None
    _logger.info("stopped")
    return EXIT_STOPPED


def _exit_fatal(reason: BaseException) -> NoReturn:
    _logger.critical("fatal", reason=str(reason))
    # Nothing waits for a clean end here: the disk or the log can't be trusted, the next start recovers.
    _tell(f"stripemeter: {reason}\n", sys.stderr)
    _exit_hard(EXIT_FATAL)


def _exit_hard(code: int) -> NoReturn:
    log_output.drain()
    os._exit(code)


async def _serve_http(gateway: Gateway, stop: trio.Event) -> None:
    config = http_config(gateway.settings)
    async with trio.open_nursery() as nursery:
        install_server(gateway, config, stop, nursery)

        async def until_stopped(task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                create_asgi(gateway),
                config,
                shutdown_trigger=stop.wait,
                mode="asgi",
                task_status=task_status,
            )
            nursery.cancel_scope.cancel()

        try:
            urls = await nursery.start(until_stopped)
        except* OSError as group:
            where = f"{gateway.settings.host}:{gateway.settings.port}"
            reason = getattr(first_of(group), "strerror", None)
            message = (
                f"can't listen on {where}: {reason}. Choose another with STRIPEMETER_PORT or --port"
            )
            raise StartRefused(message) from None
        gateway.urls = tuple(urls)
        _logger.info("listening", urls=list(urls))


def install_server(
    gateway: Gateway, config: hypercorn.Config, stop: trio.Event, nursery: trio.Nursery
) -> None:
    """Repair Hypercorn and, where it is on and fits, put the fast lane into it."""
    repair()
    if gateway.settings.fast_lane == "off":
        return
    reason = difference()
    if reason is not None:
        _logger.warning("fast_lane_off", reason=reason)
        return
    answers = LaneAnswers(gateway, partial(config.response_headers, "h11"))
    watch = Watch(connections_max(), on_look=answers.flush)
    nursery.start_soon(watch.run, stop)
    poll = LanePoll.where_possible(answers, watch, gateway.settings.max_body_bytes)
    if poll is not None:
        nursery.start_soon(poll.run)
    put_in(LaneServer, answers, watch, poll, gateway.settings.max_body_bytes)


def http_config(settings: Settings) -> hypercorn.Config:
    """Hypercorn's settings: tight time-outs, since some of its own are not armed again after a response."""
    config = hypercorn.Config()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    config.bind = [f"{host}:{settings.port}"]
    config.read_timeout = _IDLE_SECONDS_MAX
    config.keep_alive_timeout = _IDLE_SECONDS_MAX
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = _HEAD_BYTES_MAX
    config.h2_max_inbound_frame_size = _HEAD_BYTES_MAX
    config.graceful_timeout = max(0.5, settings.shutdown_grace_seconds - 1)
    config.shutdown_timeout = max(0.5, settings.shutdown_grace_seconds - 1)
    config.include_server_header = False
    config.backlog = 1024
    adopt_hypercorn(config)
    return config


def _ready(gateway: Gateway) -> None:
    collector.resume()
    for sentence in advice(gateway.settings, gateway.meter.registry.mappings.values()):
        _logger.info("pushing", note=sentence)
    if gateway.urls:
        simulator = None if gateway.ways is None else gateway.ways.simulator_url
        text = welcome(gateway.urls[0], auth=gateway.settings.auth_required, simulator=simulator)
        _tell(text, sys.stdout)


def _tell(text: str, stream: TextIO) -> None:
    """To a person, if somebody listens: neither a start nor an end may hang on a full disk or a pipe without a reader."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


def welcome(url: str, *, auth: bool, simulator: str | None = None) -> str:
    """What a person sees when the server is ready: where it is, what it pushes to, and the first command to try."""
    key = " -H 'Authorization: Bearer sm_...'" if auth else ""
    pushed = ""
    if simulator is not None:
        pushed = f"Stripe is simulated here (no key is used, nothing leaves this machine); what it holds: {simulator}\n\n"
    event = (
        '{"events": [{"tenantId": "acme", "metric": "api_calls", "customerRef": "cus_anna", '
        '"quantity": 3, "idempotencyKey": "request-1"}]}'
    )
    return (
        f"StripeMeter is ready on {url} (API: {url}/docs). Send a first event, twice; it counts once:\n\n"
        f"  curl -s{key} --json '{event}' {url}/v1/events/ingest\n"
        f"  curl -s{key} '{url}/v1/usage/current?tenantId=acme&customerRef=cus_anna'\n\n"
        f"{pushed}"
    )


async def _stop_on_signal(gateway: Gateway, stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            if stop.is_set():
                _logger.warning("second_signal", signal=signal.Signals(number).name)
                _exit_hard(EXIT_STOPPED)
            _logger.info("stopping", signal=signal.Signals(number).name)
            _exit_hard_after(gateway.settings.shutdown_grace_seconds)
            gateway.is_stopping = True
            stop.set()


def _exit_hard_after(seconds: float) -> None:
    """A client that never reads holds its connection's task, shielded: don't wait for it for ever."""

    def end() -> None:
        _tell("stripemeter: the grace period is over; open connections are cut off\n", sys.stderr)
        _exit_hard(EXIT_STOPPED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
