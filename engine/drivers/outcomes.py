"""What an answer of Stripe's means for a push: from status, headers and error to one of five outcomes.

Rules it keeps, in the order in which they are tried:
1. `RetryLater` only where the request was certainly not applied: a limit, a lock, a connection that never was.
2. An answer without Stripe's error object proves nothing, and a 5xx may have been applied: `Unknown`.
3. "Already exists" is known by its message on v1, where Stripe gives no code, and by its code on v2.
4. A refusal says how far it reaches: this request, all requests of the target, the whole key; in words to act on.

Everything here is a table or a pure function. It must not know the wire, the library or who asks.
Sources: https://docs.stripe.com/error-codes, /rate-limits, /api/idempotent_requests, /billing/subscriptions/usage-based.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from engine import limits
from engine.core.billing import (
    AlreadyDelivered,
    DriverName,
    Outcome,
    Refused,
    RetryLater,
    Unknown,
)
from engine.drivers.wire import Answer, AnswerLost, NeverLeft, WireFailure


class Problem(NamedTuple):
    """An unsuccessful answer, read."""

    status: int
    is_stripes: bool
    """It holds an error object, so Stripe's API wrote it."""
    type: str
    code: str
    message: str
    request_id: str | None
    retry_after_us: int | None
    limited_by: str
    """`Stripe-Rate-Limited-Reason`."""
    asks_to_retry: bool

    def words(self) -> str:
        """Stripe's message with its code and request, for a person."""
        text = self.message or f"HTTP {self.status} without a message"
        marks = [mark for mark in (self.code or self.type, self.request_id) if mark]
        text = text[: limits.STRIPE_REASON_CHARS_MAX]
        return f"{text} ({', '.join(marks)})" if marks else text


class Subject(NamedTuple):
    """What was asked for, as far as advice depends on it."""

    driver: DriverName = "meter"
    item: str | None = None
    customer: str | None = None
    event_name: str | None = None
    connect_account: str | None = None


_DUPLICATE: Final = re.compile(r"(?i)event already exists with identifier")
_LEGACY: Final = re.compile(r"(?i)not on the legacy metered billing system")
_NO_ENDPOINT: Final = re.compile(r"(?i)unrecognized request url")
_GONE: Final = re.compile(
    r"(?i)no such (customer|meter|billing meter|subscription|subscription_item|subscription item|price)"
    r"|(customer|subscription|subscription item)\b.{0,80}\b(deleted|canceled|cancelled)"
    r"|no (active )?(billing )?meter\b|meter\b.{0,80}\b(archived|inactive|deactivated|not active)"
)
_ENDED_CODES: Final = frozenset(
    {"resource_missing", "archived_meter", "no_meter", "meter_event_customer_not_found"}
)
_ACCOUNT_CODES: Final = frozenset(
    {
        "api_key_expired",
        "invalid_api_key",
        "livemode_mismatch",
        "platform_api_key_expired",
        "secret_key_required",
        "testmode_charges_only",
        "tls_version_unsupported",
    }
)
_LANE_LIMITS: Final = frozenset({"resource-specific"})


def read_problem(answer: Answer) -> Problem:
    """What an unsuccessful answer says; texts are empty where it says nothing. `answer.headers` ignore case."""
    found: object = None
    try:
        body = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        body = None
    if isinstance(body, dict):
        found = body.get("error")
    error = found if isinstance(found, dict) else {}

    def text(name: str) -> str:
        value = error.get(name)
        return value if isinstance(value, str) else ""

    return Problem(
        status=answer.status,
        is_stripes=bool(error),
        type=text("type"),
        code=text("code"),
        message=text("message"),
        request_id=answer.headers.get("request-id"),
        retry_after_us=_retry_after_us(answer.headers.get("retry-after")),
        limited_by=(answer.headers.get("stripe-rate-limited-reason") or "").lower(),
        asks_to_retry=answer.headers.get("stripe-should-retry") == "true",
    )


def _retry_after_us(text: str | None) -> int | None:
    """Microseconds; None for nothing, for a date (another clock's) and for what makes no sense."""
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return None
    return min(int(text), limits.STRIPE_RETRY_AFTER_SECONDS_MAX) * 1_000_000


def outcome_of_failure(failure: WireFailure) -> Outcome:
    """No answer came."""
    if isinstance(failure, NeverLeft):
        return RetryLater(str(failure), is_account_wide=True)
    assert isinstance(failure, AnswerLost), "there is no third kind"
    return Unknown(str(failure))


def outcome_of_problem(problem: Problem, subject: Subject) -> Outcome:
    """An unsuccessful answer came."""
    if (later := _retry_later(problem)) is not None:
        return later
    if problem.status >= 500:
        return Unknown(f"Stripe answered {problem.status}: {problem.words()}", is_stored=True)
    if not problem.is_stripes:
        return Unknown(
            f"HTTP {problem.status} and no word of Stripe's: something between here and Stripe answered; "
            "check STRIPE_API_BASE and proxies"
        )
    if problem.code == "duplicate_meter_event" or _DUPLICATE.search(problem.message):
        return AlreadyDelivered(problem.words(), problem.request_id)
    if problem.type == "idempotency_error" or problem.code == "idempotency_error":
        return _refused(
            problem,
            "request",
            "an idempotency key was used before with other parameters: this intent is not the one first sent",
        )
    return _refusal(problem, subject)


def _retry_later(problem: Problem) -> RetryLater | None:
    """A limit or a lock: the request did not begin."""
    is_limit = problem.status == 429 or problem.code == "rate_limit" or problem.type == "rate_limit"
    is_lock = problem.status == 409 or problem.code in {"lock_timeout", "idempotency_key_in_use"}
    if is_limit and problem.status < 500:
        is_lane = problem.code == "lock_timeout" or problem.limited_by in _LANE_LIMITS
        return RetryLater(
            f"Stripe's limit: {problem.words()}",
            problem.retry_after_us,
            is_account_wide=not is_lane,
        )
    if problem.is_stripes and problem.status < 500 and (is_lock or problem.asks_to_retry):
        return RetryLater(f"busy at Stripe: {problem.words()}", problem.retry_after_us)
    return None


def _refusal(problem: Problem, subject: Subject) -> Refused:
    """A 4xx that the same bytes would meet again."""
    if is_key_refused(problem):
        return _refused(problem, "account", "Stripe refuses the key: set a valid one and restart")
    if problem.status == 403 or problem.code == "account_invalid":
        if subject.connect_account is not None:
            return _refused(
                problem,
                "target",
                f"the key has no access to the connected account {subject.connect_account}: "
                "was it disconnected? correct the customer's or mapping's Stripe account",
            )
        return _refused(
            problem,
            "account",
            "the key may not do this: give the restricted key write access to billing meter events "
            "and read access to meters, customers, subscriptions and prices",
        )
    if _LEGACY.search(problem.message):
        return _refused(
            problem,
            "target",
            f"the price of {subject.item} is on a billing meter: set `driver` of its mapping to `meter`",
        )
    if _NO_ENDPOINT.search(problem.message):
        if subject.driver == "usage_record":
            return _refused(
                problem,
                "target",
                "Stripe no longer has usage records for this account: move the price to a billing meter",
            )
        return _refused(
            problem, "account", "the base URL is not Stripe's API: check STRIPE_API_BASE"
        )
    if problem.code in _ENDED_CODES or _GONE.search(problem.message):
        return _refused(
            problem,
            "target",
            f"{_named(subject)} is gone at Stripe or was never there: correct the mapping or the customer",
        )
    return _refused(problem, "request", "")


def is_key_refused(problem: Problem) -> bool:
    """Whether Stripe does not take the key at all: it says nothing of what was asked for, and may be put right."""
    return problem.status == 401 or problem.code in _ACCOUNT_CODES


def is_of_key(problem: Problem) -> bool:
    """Whether a 4xx that is no limit and no lock is about the key or the address, and not about what was asked for."""
    return _refusal(problem, Subject()).scope == "account"


def _named(subject: Subject) -> str:
    """The target in words."""
    named = [
        f"{noun} {value}"
        for noun, value in (
            ("meter event", subject.event_name),
            ("customer", subject.customer),
            ("item", subject.item),
        )
        if value
    ]
    return " or ".join(named) or "what it names"


def _refused(problem: Problem, scope: str, advice: str) -> Refused:
    assert scope in {"request", "target", "account"}
    reason = f"{advice}. Stripe: {problem.words()}" if advice else f"Stripe: {problem.words()}"
    return Refused(
        reason,
        problem.code or (problem.type or None),
        scope,  # type: ignore[arg-type]  # asserted above
        problem.request_id,
    )
