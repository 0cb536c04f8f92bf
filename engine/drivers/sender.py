"""The process that speaks with Stripe for the server: started by `engine.drivers.remote`, told what to ask by a socket.

Rules it keeps: it decides nothing, keeps nothing and repeats nothing; each call is made once, and a write only in time.
When the server is gone (the socket ends, or Linux says so), it ends at once, whatever is under way: nobody would learn
the answer. The signals of a stop are the server's to heed: what is under way then is still wanted. It listens on
nothing. Keys come by the socket. A defect ends it; its last frame says where, in words without a value.
It must not know the log, the plan, or why something is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import traceback
from typing import Final, NoReturn

import msgspec
import trio

from engine.core.billing import RetryLater
from engine.drivers.billing import StripeBilling
from engine.drivers.frames import (
    WRITES,
    Answer,
    Call,
    FrameReader,
    FrameWriter,
    arguments_of,
    frame,
    packed_result,
    read_call,
    read_ways,
)
from engine.drivers.wire import begin_by_us, machine_us

NICENESS: Final = 5
"""Ingest goes first where both want the same core."""
GATHER_SECONDS: Final = 0.005
"""Answers that come within it wake the server once: that costs ingest as much as the answer itself, which has time."""
_PR_SET_PDEATHSIG: Final = 1
_LAST_WORDS_SECONDS_MAX: Final = 1


def main() -> NoReturn:
    """Serve the socket whose number is the first argument."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    os.nice(NICENESS)
    trio.run(serve, socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)


def _end_with_parent() -> None:
    """Linux kills this process when its parent ends, should the socket be held open by somebody else."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def serve(connected: socket.socket) -> None:
    """Answer calls until the server is gone."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
    reader, writer = FrameReader(stream), FrameWriter(stream, GATHER_SECONDS)
    first = await reader.next()
    if first is None:
        return
    ways = {
        name: StripeBilling(
            way.secret, api_base=way.api_base, meter_events_base=way.meter_events_base
        )
        for name, way in read_ways(first).items()
    }
    writer.put(frame(Answer(0)))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            while (body := await reader.next()) is not None:
                call = read_call(body)
                nursery.start_soon(answer, call, ways.get(call.way), writer)
            # Not by cancelling: a task on its way out could still finish a request.
            os._exit(0)
    except* Exception as group:  # noqa: BLE001 - whatever it is, it ends the process
        last_words = frame(Answer(0, [], where(group)))
        with (
            trio.move_on_after(_LAST_WORDS_SECONDS_MAX),
            contextlib.suppress(trio.BrokenResourceError),
        ):
            await stream.send_all(last_words)


async def answer(call: Call, billing: StripeBilling | None, writer: FrameWriter) -> None:
    """Make one call, once, and say what it came to."""
    if call.number == 0:
        writer.put(frame(Answer(0)))
        return
    assert billing is not None, "the server names ways that it opened"
    arguments = arguments_of(call)
    if call.method in WRITES and is_over(call):
        late = RetryLater("it could not be begun in time")
        results: list[object] = [late] * (len(arguments[0]) if call.method == "send" else 1)
    else:
        begin_by_us.set(call.begin_by_us)
        result = await getattr(billing, call.method)(*arguments)
        results = result if isinstance(result, list) else [result]
    writer.put(frame(Answer(call.number, [packed_result(one) for one in results])))


def is_over(call: Call) -> bool:
    """Whether it is too late to begin: this process, or the machine, was stopped meanwhile."""
    return call.begin_by_us is not None and machine_us() > call.begin_by_us


def where(error: BaseException) -> str:
    """What was raised and where, without its words: they may quote anything."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    places = [
        f"{frame_.filename.rpartition('/')[2]}:{frame_.lineno} {frame_.name}"
        for frame_ in traceback.extract_tb(error.__traceback__)[-3:]
    ]
    kind = type(error)
    known = (
        f"{kind.__name__}: {error}" if isinstance(error, msgspec.MsgspecError) else kind.__name__
    )
    return f"{known} at {' > '.join(places)}"


if __name__ == "__main__":
    main()
