"""Stripe as a state machine: a request in, an answer out; time and seed are parameters.

    state = StripeState(Settings(seed="7"), now_us=lambda: virtual_time_us)
    response = state.handle(Request("POST", "/v1/billing/meter_events", headers={...}, body=b"event_name=..."))
    for webhook in state.due_webhooks(virtual_time_us): ...; state.webhook_answered(webhook.id, delivered=True)

`handle` is `begin` and `finish` at once. Whoever serves several callers begins each request when it comes and finishes
it when its answer leaves: between the two, a second one of the same customer and meter, or of the same idempotency
key, is refused as Stripe refuses it.

Rules it keeps: no IO, no clock, no randomness of its own. What a request does depends on the seed and on the requests
before it that changed something, with their times: `repeat` of those gives the same state. What does depend on who is
under way (409) and on the pace (429) is decided before, and changes nothing. Times never go back. It must not know
HTTP servers, files or what an endpoint does.
"""

from __future__ import annotations

import hmac
import re
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from hashlib import blake2b, sha256
from typing import Final, NamedTuple, cast

import msgspec

from gateway.simulator import control, faults
from gateway.simulator.agenda import catch_up
from gateway.simulator.aggregation import make_meter
from gateway.simulator.desk import API_VERSION, Desk
from gateway.simulator.expanding import expand
from gateway.simulator.ledger import (
    DAY_SECONDS,
    MICROS,
    REPLAYS_MAX,
    Fault,
    Ledger,
    Settings,
    Stored,
    Webhook,
    World,
    digest_id,
)
from gateway.simulator.pace import Pace
from gateway.simulator.routes import Found, find
from gateway.simulator.wire import (
    Fields,
    Json,
    Refusal,
    Request,
    Response,
    decode_form,
    encode,
)

REQUESTS_SHOWN: Final = 200
ACCOUNTS_MAX: Final = 10_000
KEY_CHARS_MAX: Final = 255
_ACCOUNT: Final = re.compile(r"acct_[A-Za-z0-9_]{1,64}\Z")
_EVENTS: Final = ("/v1/billing/meter_events", "/v2/billing/meter_events")
_KEY_IN_USE: Final = Refusal(
    409,
    "There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the other request is still going through).",
    "idempotency_key_in_use",
    type="idempotency_error",
    is_kept=False,
)
_SLOWER: Final = Refusal(429, "Request rate limit exceeded.", "rate_limit", is_kept=False)


class Call(NamedTuple):
    """A request under way."""

    request: Request
    response: Response
    now_us: int
    is_changed: bool
    """Whether a journal needs it to bring the state back."""
    holds: tuple[str, ...] = ()
    """What nobody else may use until it is finished."""


class StripeState:
    """One simulated Stripe with all its accounts."""

    def __init__(
        self, settings: Settings, now_us: Callable[[], int], world: World | None = None
    ) -> None:
        self.settings = settings
        self._clock = now_us
        account = settings.account or digest_id("acct_sim", settings.seed, length=13)
        self.world = world or World(account)
        self._held: set[str] = set()
        self._pace = Pace(settings.limits, self.world.account)
        self._readings = 0
        self.requests: deque[Json] = deque(maxlen=REQUESTS_SHOWN)
        """The last requests, for people; not part of the state."""
        self._date = (0, "")

    @property
    def account(self) -> str:
        """The id of the simulator's own account."""
        return self.world.account

    def now_us(self) -> int:
        """Simulated time."""
        return max(self._clock() + self.world.offset_us, self.world.last_us)

    # Serving.

    def handle(self, request: Request) -> Response:
        """Serve one request as if nothing else were under way."""
        call = self.begin(request)
        self.finish(call)
        return call.response

    def begin(self, request: Request) -> Call:
        """Serve a request; it is under way until `finish`."""
        now_us = self.now_us()
        self.world.last_us = now_us
        if request.path.startswith("/_sim/"):
            return self._execute(request, None, {}, now_us)
        found = find(request.method, request.path)
        values = _decode(request)
        refused, holds = self._refused_now(request, found, values, now_us)
        if refused is not None:
            return self._ended(request, refused, now_us)
        call = self._execute(request, found, values, now_us)
        self._held.update(holds)
        return call._replace(holds=holds)

    def finish(self, call: Call) -> None:
        """The answer has left, or will never."""
        self._held.difference_update(call.holds)

    def repeat(self, request: Request, now_us: int) -> None:
        """Do again what a request did at that time: how a journal brings the state back."""
        self.world.last_us = max(now_us, self.world.last_us)
        self._execute(request, find(request.method, request.path), _decode(request), now_us)

    def _refused_now(
        self, request: Request, found: Found | None, values: Json | Refusal, now_us: int
    ) -> tuple[Refusal | None, tuple[str, ...]]:
        """What refuses a request for what goes on beside it; else what it holds while it is under way."""
        account = request.headers.get("stripe-account") or self.world.account
        if found is not None and not self._pace.allows(
            account, request.method, found.pattern, now_us
        ):
            return _SLOWER, ()
        holds = []
        key = request.headers.get("idempotency-key")
        if key and request.method == "POST":
            holds.append(f"key {account} {key}")
            if holds[0] in self._held:
                return _KEY_IN_USE, ()
        if self.settings.one_call_per_lane and request.path in _EVENTS and isinstance(values, dict):
            payload = values.get("payload")
            if isinstance(payload, dict):
                lane = (
                    f"lane {account} {values.get('event_name')} {payload.get('stripe_customer_id')}"
                )
                holds.append(lane)
                if lane in self._held:
                    return faults.BUSY, ()
        return None, tuple(holds)

    def _execute(
        self, request: Request, found: Found | None, values: Json | Refusal, now_us: int
    ) -> Call:
        if request.path.startswith("/_sim/"):
            return self._control(request, now_us)
        account = request.headers.get("stripe-account") or self.world.account
        if _ACCOUNT.match(account) is None:
            message = f"The provided key does not have access to account '{account:.70}' (or that account does not exist)."
            return self._ended(request, Refusal(403, message, "account_invalid"), now_us)
        is_new = account not in self.world.ledgers
        ledger = self.ledger(account, now_us)
        if ledger is None:
            return self._ended(
                request, Refusal(403, "too many accounts", "account_invalid"), now_us
            )
        catch_up(self.world, ledger, self.settings, now_us)
        verdict = faults.judge(self.world, self.settings.seed, request, now_us)
        is_changed = is_new or verdict.is_struck or (request.method != "GET" and found is not None)
        desk = Desk(self.world, ledger, self.settings, now_us)
        desk.version = request.headers.get("stripe-version") or API_VERSION
        desk.token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if verdict.effects is not None:
            desk.effects = verdict.effects
        response = self._answer(request, found, values, desk, verdict)
        is_changed = is_changed or desk.is_changed
        self.world.sequence += is_changed
        if verdict.delay_seconds:
            response = response._replace(delay_seconds=verdict.delay_seconds)
        if verdict.lost:
            response = Response(0, {}, b"", verdict.delay_seconds, verdict.lost)
        return self._shown(Call(request, response, now_us, is_changed))

    def _answer(
        self,
        request: Request,
        found: Found | None,
        values: Json | Refusal,
        desk: Desk,
        verdict: faults.Verdict,
    ) -> Response:
        request_id = self._request_id(request)
        if not verdict.is_applied and verdict.refusal is not faults.ERROR:
            return self._respond(verdict.refusal or faults.ERROR, request_id, desk.now_us)
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        desk.request_id, desk.idempotency_key = request_id, key
        if key:
            stored = self._stored(desk.ledger, key, request, desk.now_us)
            if isinstance(stored, Refusal):
                return self._respond(stored, request_id, desk.now_us)
            if stored is not None:
                headers = {
                    **self._headers(request_id, desk.now_us),
                    "idempotency-key": key,
                    "idempotent-replayed": "true",
                    "original-request": stored.headers["request-id"],
                }
                return Response(stored.status, {**stored.headers, **headers}, stored.body.encode())
        content: Json | Refusal
        if not verdict.is_applied:
            content = faults.ERROR
        elif found is None:
            message = f"Unrecognized request URL ({request.method}: {request.path:.200}). If you are trying to list objects, remove the trailing slash. If you are trying to retrieve an object, make sure you passed a valid (non-empty) identifier in your code."
            content = Refusal(404, message, is_kept=False)
        elif isinstance(values, Refusal):
            content = values
        else:
            content = found.serve(desk, Fields(values))
            expanded = Fields(values).words("expand") if "expand" in values else []
            if expanded and not isinstance(content, Refusal):
                content = expand(desk, content, expanded)
            content = verdict.refusal or content
        response = self._respond(content, request_id, desk.now_us, key)
        is_kept = not isinstance(content, Refusal) or content.is_kept
        if request.path.startswith("/v2/") and response.status >= 500:
            is_kept = False
        if key and is_kept:
            self._store(desk.ledger, key, request, response, desk.now_us)
        return response

    def _control(self, request: Request, now_us: int) -> Call:
        for ledger in self.world.ledgers.values():
            catch_up(self.world, ledger, self.settings, now_us)
        is_new = self.world.account not in self.world.ledgers
        own = self.ledger(self.world.account, now_us)
        assert own is not None, "the own account comes first, and so has room"
        if (request.method, request.path) == ("GET", "/_sim/state"):
            shown = control.show(self.world, self.settings, now_us, self.requests)
            return self._ended(request, shown, now_us)._replace(is_changed=is_new)
        content = control.control(self.world, self.settings, request, now_us)
        is_changed = is_new or (request.method != "GET" and content is not None)
        self.world.sequence += is_changed
        if content is None:
            content = Refusal(404, f"There is no {request.method} {request.path:.200} here.")
        call = self._ended(request, cast("Json | Refusal", content), now_us)
        return call._replace(is_changed=is_changed)

    def ledger(self, account: str, now_us: int) -> Ledger | None:
        """An account's ledger, made on first sight; None: there are too many."""
        ledger = self.world.ledgers.get(account)
        if ledger is None:
            if len(self.world.ledgers) >= ACCOUNTS_MAX:
                return None
            ledger = self.world.ledgers[account] = Ledger(account)
            desk = Desk(self.world, ledger, self.settings, now_us)
            for name in self.settings.meters:
                if name != "*":
                    make_meter(desk, name)
        return ledger

    # Idempotency keys.

    def _stored(
        self, ledger: Ledger, key: str, request: Request, now_us: int
    ) -> Stored | Refusal | None:
        if len(key) > KEY_CHARS_MAX:
            message = f"Idempotency keys have at most {KEY_CHARS_MAX} characters."
            return Refusal(400, message, type="idempotency_error", is_kept=False)
        replays = ledger.replays
        while replays:
            first = next(iter(replays))
            is_old = replays[first].at_us + DAY_SECONDS * MICROS <= now_us
            if not is_old and len(replays) < REPLAYS_MAX:
                break
            del replays[first]
        stored = replays.get(key)
        if stored is not None and stored.fingerprint != _fingerprint(request):
            message = f"Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '{key}' if you meant to execute a different request."
            return Refusal(400, message, type="idempotency_error", is_kept=False)
        return stored

    def _store(
        self, ledger: Ledger, key: str, request: Request, response: Response, now_us: int
    ) -> None:
        headers = {
            name: value
            for name, value in response.headers.items()
            if name in ("request-id", "stripe-should-retry")
        }
        ledger.replays[key] = Stored(
            now_us, _fingerprint(request), response.status, headers, response.body.decode()
        )

    # Answers.

    def _request_id(self, request: Request) -> str:
        if request.method == "GET":
            self._readings += 1
            return digest_id("req_", self.settings.seed, "get", self._readings, length=14)
        return digest_id("req_", self.settings.seed, self.world.sequence, length=14)

    def _headers(self, request_id: str, now_us: int) -> dict[str, str]:
        now_s = now_us // MICROS
        if self._date[0] != now_s:
            self._date = (now_s, formatdate(now_s, usegmt=True))
        return {
            "content-type": "application/json",
            "date": self._date[1],
            "request-id": request_id,
        }

    def _respond(
        self, content: Json | Refusal, request_id: str, now_us: int, key: str | None = None
    ) -> Response:
        headers = self._headers(request_id, now_us)
        if key:
            headers["idempotency-key"] = key
        if isinstance(content, Refusal):
            headers.update(content.headers)
            return Response(content.status, headers, content.body())
        return Response(200, headers, encode(content))

    def _ended(self, request: Request, content: Json | Refusal, now_us: int) -> Call:
        response = self._respond(content, self._request_id(request), now_us)
        return self._shown(Call(request, response, now_us, is_changed=False))

    def _shown(self, call: Call) -> Call:
        if not call.request.path.startswith("/_sim/"):
            row: Json = {"at_us": call.now_us, "method": call.request.method}
            row["path"] = call.request.path[:200]
            row["status"] = call.response.status or call.response.lost
            row["account"] = call.request.headers.get("stripe-account") or self.world.account
            if call.response.status >= 400:
                row["error"] = call.response.json()["error"]["message"][:200]
            self.requests.append(row)
        return call

    # Faults, time and webhooks, for who calls in process.

    def add_fault(self, kind: str, endpoint: str = "*", **more: object) -> str:
        """Put a fault in force (fields: `ledger.Fault`); its id. The same as `POST /_sim/faults`."""
        body = encode({"kind": kind, "endpoint": endpoint, **more})
        response = self.handle(Request("POST", "/_sim/faults", body=body))
        if response.status != 200:
            raise ValueError(response.json()["error"]["message"])
        return cast("str", response.json()["id"])

    def clear_faults(self) -> None:
        """End all faults."""
        self.handle(Request("DELETE", "/_sim/faults"))

    def ensure(self, *, customers: tuple[str, ...] = (), meters: tuple[str, ...] = ()) -> None:
        """Have these customers and `sum` meters, made where they are missing: set-up in one call."""
        body = encode({"customers": customers, "meters": meters})
        self.handle(Request("POST", "/_sim/ensure", body=body))

    def due_webhooks(self, now_us: int) -> list[Webhook]:
        """The webhooks to be sent by now, signed for now. Each stays due until `webhook_answered`."""
        now_us = max(now_us, self.world.last_us)
        for ledger in self.world.ledgers.values():
            catch_up(self.world, ledger, self.settings, now_us)
        found = []
        for delivery in self.world.deliveries.values():
            if delivery.due_us <= now_us:
                body = delivery.body.encode()
                headers = {
                    "content-type": "application/json; charset=utf-8",
                    "stripe-signature": sign(delivery.secret, body, now_us // MICROS),
                    "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
                }
                found.append(Webhook(delivery.id, delivery.url, headers, body))
        return found

    def webhook_answered(self, webhook_id: str, *, delivered: bool) -> None:
        """Take note of how sending went; what failed goes out again after a while."""
        self.handle(answer_to_webhook(webhook_id, delivered=delivered))

    def summary(self) -> Json:
        """What `GET /_sim/state` answers."""
        return cast("Json", self.handle(Request("GET", "/_sim/state")).json())

    def snapshot(self) -> bytes:
        """All of the state as JSON; `StripeState(settings, now_us, read_snapshot(data))` goes on from it."""
        return encode(self.world)


def read_snapshot(data: bytes) -> World:
    """What `snapshot` wrote; raises msgspec.MsgspecError for anything else."""
    return msgspec.json.decode(data, type=World)


def answer_to_webhook(webhook_id: str, *, delivered: bool) -> Request:
    """The request that notes how sending a webhook went."""
    body = encode({"delivered": delivered})
    return Request("POST", f"/_sim/webhooks/{webhook_id}", body=body)


def sign(secret: str, body: bytes, timestamp_s: int) -> str:
    """The `Stripe-Signature` header of a body. Source: https://docs.stripe.com/webhooks#verify-manually."""
    signed = hmac.new(secret.encode(), b"%d.%s" % (timestamp_s, body), sha256).hexdigest()
    return f"t={timestamp_s},v1={signed}"


def fault_fields() -> tuple[str, ...]:
    """The names of what a fault can be given."""
    return Fault.__struct_fields__


def _fingerprint(request: Request) -> str:
    data = f"{request.method} {request.path}\0".encode() + request.body
    return blake2b(data, digest_size=16).hexdigest()


def _decode(request: Request) -> Json | Refusal:
    if request.method == "GET":
        return decode_form(request.query)
    if not request.body:
        return decode_form(request.query) if request.query else {}
    try:
        if request.path.startswith("/v2/"):
            values = msgspec.json.decode(request.body)
            if isinstance(values, dict):
                return values
            return Refusal(400, "The body must be a JSON object.", is_kept=False)
        return decode_form(request.body.decode())
    except (msgspec.MsgspecError, ValueError):
        return Refusal(400, "The body of the request can't be read.", is_kept=False)
