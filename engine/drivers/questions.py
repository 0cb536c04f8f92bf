"""Reading from Stripe: one object or a whole list, checked, or the reason why not.

Rules it keeps: a question's failure is a value (`Unanswered`); pages are followed to the end or the list counts as
unanswered, since half a list looks like a whole one. It must not know what an object is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from engine import limits
from engine.core.billing import Unread
from engine.drivers.calls import LIBRARY_API_VERSION, NotTaken, StripeCalls
from engine.drivers.outcomes import Problem, is_key_refused, is_of_key, read_problem
from engine.drivers.shapes import Page
from engine.drivers.wire import WireFailure

ObjectT = TypeVar("ObjectT")

PAGE_OBJECTS: Final = 100
"""Stripe's largest page."""
# Prices, plans and customers of older accounts may have names that somebody chose: `gold-plan.v2`.
_ID: Final = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.@:+-]{1,255}")


class Unanswered(NamedTuple):
    """A question without an answer."""

    reason: str
    is_temporary: bool
    """The same question may be answered later."""
    is_missing: bool = False
    """Stripe says that there is no such object."""
    after_us: int | None = None
    is_refused: bool = False
    """Stripe answers, and refuses this question; not the key, nor all that is asked with it."""


def is_id(text: str) -> bool:
    """Whether a text may stand in a path; else it could name another one."""
    return _ID.fullmatch(text) is not None


async def ask(
    calls: StripeCalls,
    path: str,
    shape: type[ObjectT],
    params: Mapping[str, Any] | None = None,
    *,
    connect_account: str | None = None,
    api_version: str = LIBRARY_API_VERSION,
) -> ObjectT | Unanswered:
    """One object of that shape."""
    try:
        answer = await calls.call(
            "get", path, params or {}, connect_account=connect_account, api_version=api_version
        )
    except NotTaken as error:
        return unanswered(read_problem(error.answer))
    except WireFailure as failure:
        return Unanswered(str(failure), is_temporary=True)
    return decode(answer.body, shape, path)


def decode(body: str, shape: type[ObjectT], what: str) -> ObjectT | Unanswered:
    """A body as that shape."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        return Unanswered(f"the answer to {what} makes no sense: {error}", is_temporary=True)


async def ask_list(
    calls: StripeCalls,
    path: str,
    shape: type[ObjectT],
    params: Mapping[str, Any],
    *,
    connect_account: str | None = None,
    api_version: str = LIBRARY_API_VERSION,
) -> list[ObjectT] | Unanswered:
    """All objects of a list whose objects have an `id`, page after page."""
    found: list[ObjectT] = []
    more: dict[str, Any] = {"limit": PAGE_OBJECTS}
    for _ in range(limits.STRIPE_PAGES_MAX):
        page = await ask(
            calls,
            path,
            Page[shape],  # type: ignore[valid-type]  # a parameter as a type argument, which msgspec reads
            {**params, **more},
            connect_account=connect_account,
            api_version=api_version,
        )
        if isinstance(page, Unanswered):
            return page
        found += page.data
        if not page.has_more:
            return found
        if not page.data:
            return Unanswered(f"{path}: a page that is empty and not the last", is_temporary=True)
        more["starting_after"] = page.data[-1].id  # type: ignore[attr-defined]  # all shapes of lists
    return Unanswered(
        f"{path}: more than {limits.STRIPE_PAGES_MAX * PAGE_OBJECTS} objects",
        is_temporary=False,
        is_refused=True,
    )


def unread(what: str, found: Unanswered) -> Unread:
    """A question without an answer, as what could not be read."""
    reason = f"{what}: {found.reason}"
    return Unread(reason, found.after_us, found.is_missing, found.is_refused)


def unanswered(problem: Problem) -> Unanswered:
    """An unsuccessful answer to a question."""
    is_temporary = (
        problem.status >= 500
        or problem.status in {409, 429}
        or problem.type == "rate_limit"
        or problem.code in {"rate_limit", "lock_timeout"}
        or not problem.is_stripes
        or is_key_refused(problem)
    )
    is_missing = problem.is_stripes and (
        problem.code == "resource_missing" or problem.status == 404
    )
    return Unanswered(
        f"Stripe: {problem.words()}",
        is_temporary=is_temporary and not is_missing,
        is_missing=is_missing,
        after_us=problem.retry_after_us,
        is_refused=(is_missing or not is_temporary) and not is_of_key(problem),
    )
