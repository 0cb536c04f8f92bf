"""What goes wrong in the story, step by step, and what the meter does about it.

Rules it keeps: a step that does not find what it must find raises DemoFailed with what it found. What is at Stripe but
not ours is never taken back by the meter here: whoever made it does that. It must not know how the story is told, nor
how it ends.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.demo.processes import DemoFailed, wait_until
from gateway.demo.scene import Scene
from gateway.demo.shop import CUSTOMERS, DAY_SECONDS, METRIC, instant
from gateway.demo.wires import METER_EVENTS

LAG_SECONDS: Final = "0.2-0.8"
"""How late the simulator's summaries are; Stripe's are minutes late."""
SETTLE_SECONDS_MAX: Final = 20.0
WEBHOOK_SECONDS_MAX: Final = 60.0
_METER_EVENTS: Final = " ".join(METER_EVENTS)
OUTAGE_EVENTS: Final = 21
FOREIGN_UNITS: Final = 477
"""No multiple of anything that is pushed: what doubles a minute's pushes is another cause, `duplicate`."""
_FOREIGN_KEY: Final = "nightly-script-1"
_BATCH: Final = ((1, "anna", 13_300), (2, "anna", 10_000), (3, "bert", 47_300), (4, "cora", 1_000))


def begin(scene: Scene) -> None:
    """Two processes, and what is sold."""
    scene.teller.happens("A meter starts, and a Stripe simulator that it pushes to")
    scene.start_stripe(LAG_SECONDS)
    waited_ms = scene.start_meter()
    scene.teller.does(
        f"ready after {waited_ms / 1000:.1f} s on {scene.running.meter_url}; one process, one directory, no database"
    )
    scene.open_shop()
    day = instant(scene.shop.start_s)[:10]
    scene.teller.does(
        f"at Stripe: a billing meter, a price in three tiers, three subscriptions since {day}; mapped to it"
    )


def _batch(scene: Scene) -> list[dict[str, Any]]:
    return [scene.books.event(f"request-{key}", who, units) for key, who, units in _BATCH]


def _listed(units: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in units.items())


def customers_use_it(scene: Scene) -> None:
    """Events come in."""
    scene.teller.happens("Anna, Bert and Cora use the API")
    answer = scene.meter.ingest(_batch(scene))
    scene.expect(answer.body["accepted"], len(_BATCH), "accepted")
    scene.teller.does(
        f"{len(_BATCH)} events are on disk, counted and answered in {answer.milliseconds} ms"
    )
    scene.meter.flush()
    units = scene.of_all("pushed")
    scene.expect(units, scene.books.used, "pushed")
    scene.teller.does(f"pushed to Stripe: {_listed(units)}")


def the_answer_got_lost(scene: Scene) -> None:
    """A duplicate, and a key that is used twice."""
    scene.teller.happens("The answer got lost: the app sends all of it again")
    body = scene.meter.ingest(_batch(scene)).body
    scene.expect((body["accepted"], body["duplicates"]), (0, len(_BATCH)), "accepted, repeated")
    scene.teller.does(f"0 accepted, {len(_BATCH)} duplicates: nothing counts twice, ever")
    # Not through the books: it is no use, it is a mistake.
    wrong = {"metric": METRIC, "customerRef": "anna", "quantity": 99}
    body = scene.meter.ingest([{**wrong, "idempotencyKey": "request-1"}]).body
    scene.expect((body["accepted"], len(body["errors"])), (0, 1), "accepted, errors")
    scene.teller.does("the same key with another quantity is an error, not a guess")


def stripe_takes_what_it_will_reject(scene: Scene) -> None:
    """An asynchronous rejection begins."""
    scene.teller.happens("Cora uses 234 more. Stripe answers 200, and will reject it later")
    code = "meter_event_customer_not_found"
    contains = scene.shop.ref("cora")
    scene.fault("reject", endpoint=_METER_EVENTS, contains=contains, code=code, count=1)
    scene.uses("request-5", "cora", 234)
    scene.meter.flush()
    target = scene.target("cora")
    scene.expect(target["pushed"], scene.books.used["cora"], "Cora, pushed")
    scene.teller.does("pushed and acknowledged: nobody can know yet")


def an_event_comes_late(scene: Scene) -> None:
    """Held, then approved."""
    scene.teller.happens("A worker that was offline sends Anna's usage of three days ago")
    before = scene.counted("anna")
    ts = instant(scene.shop.opened_at_s - 3 * DAY_SECONDS)
    scene.uses("offline-1", "anna", 1_000, ts=ts)
    scene.expect(scene.counted("anna"), before, "Anna, before it is approved")
    pending = scene.meter.get("/v1/adjustments", customerRef="anna", status="pending")
    scene.expect(pending["total"], 1, "adjustments that wait")
    scene.teller.does(
        "older than the lateness window: held as a pending adjustment, neither dropped nor slipped in"
    )
    answer = scene.meter.send("/v1/adjustments/approve", {"customerRef": "anna"})
    scene.expect(answer["changed"], 1, "approved")
    scene.meter.flush()
    scene.expect(scene.target("anna")["pushed"], scene.books.used["anna"], "Anna, after approval")
    scene.teller.does(f"approved: {before:,} → {scene.counted('anna'):,}, and pushed")


def the_meter_is_killed_in_mid_push(scene: Scene) -> None:
    """The meter dies between a push and its answer."""
    scene.teller.happens("kill -9: Stripe has taken a push of Bert's, the answer is still out")
    scene.fault("swallow", endpoint=_METER_EVENTS, contains=scene.shop.ref("bert"), count=1)
    scene.uses("request-6", "bert", 12_000)
    identifier = wait_until(
        lambda: scene.open_intent("bert"), SETTLE_SECONDS_MAX, "a push of Bert's leaves"
    )
    bert = scene.shop.ref("bert")
    wait_until(
        lambda: scene.stripe.totals().get(bert) == scene.books.used["bert"] or None,
        SETTLE_SECONDS_MAX,
        "Stripe counts it",
    )
    pid, before = scene.running.kill_meter(), scene.stripe.pushes()
    scene.teller.does(f"process {pid} is gone; its log says what it had begun")
    waited_ms = scene.start_meter()
    scene.meter.flush()
    # On a slow machine another may be on its way meanwhile.
    scene.expect(scene.stripe.pushes() > before, True, "a push left again after the kill")
    scene.expect(scene.open_intent("bert"), None, "Bert's open push")
    scene.expect(scene.stripe.totals()[bert], scene.books.used["bert"], "Bert at Stripe")
    scene.teller.does(
        f"back after {waited_ms / 1000:.1f} s; the same bytes went out again as {identifier[:8]}…, and Stripe knew them: "
        "counted once"
    )


def stripe_is_away(scene: Scene) -> None:
    """An outage."""
    scene.teller.happens("Stripe is away. The customers are not")
    scene.fault("outage")
    slowest_ms = 0
    for number in range(OUTAGE_EVENTS):
        customer = CUSTOMERS[number % len(CUSTOMERS)]
        status, took_ms = scene.uses(f"outage-{number}", customer, 100)
        scene.expect(status, "accepted", "an event during the outage")
        slowest_ms = max(slowest_ms, took_ms)
    wait_until(lambda: scene.open_intent("anna"), SETTLE_SECONDS_MAX, "a push meets the outage")
    behind = scene.of_all("due")
    scene.teller.does(
        f"{OUTAGE_EVENTS} events answered, the slowest in {slowest_ms} ms; due at Stripe: {_listed(behind)}"
    )
    scene.stripe.clear_faults()
    scene.teller.waits("Stripe is back; waiting for its breaker and backoff")
    scene.meter.flush()
    # On a slow machine the rejection is reported by now, and what it names is just on its way again.
    wait_until(
        lambda: scene.of_all("pushed") == scene.books.used or None,
        SETTLE_SECONDS_MAX,
        "everything is pushed after the outage",
    )
    scene.teller.does(f"Stripe is back, and has everything: {_listed(scene.books.used)}")


def the_rejection_is_reported(scene: Scene) -> None:
    """The webhook, and a push in the rejected one's place."""
    scene.teller.happens("Stripe reports by webhook that it never counted Cora's 234")
    scene.teller.waits("Stripe gathers rejections for some seconds before it reports them")
    cora = scene.shop.ref("cora")
    wait_until(
        lambda: scene.stripe.totals().get(cora) == scene.books.used["cora"] or None,
        WEBHOOK_SECONDS_MAX,
        "what was rejected is at Stripe",
    )
    scene.teller.does("only what the report names was sent anew, under a new identifier")
    _until_resolved(scene)
    told = [(one["action"], one["cause"]) for one in scene.running.logged("finding")]
    for action in ("open", "resolve"):
        scene.expect((action, "rejected") in told, True, f"the rejection's finding, {action}")
    scene.teller.does(
        "reconciliation: found as `rejected`; resolved when Stripe's summary held what was pushed in its place"
    )


def _until_resolved(scene: Scene) -> None:
    left: list[object] = []

    def is_resolved() -> bool | None:
        left[:] = scene.findings()
        return not left or None

    try:
        wait_until(is_resolved, SETTLE_SECONDS_MAX, "what was found is resolved")
    except DemoFailed as error:
        message = f"{error}: {left}"
        raise DemoFailed(message) from error


def somebody_else_bills_too(scene: Scene) -> None:
    """Foreign usage."""
    scene.teller.happens(
        f"A forgotten script reports {FOREIGN_UNITS} of Cora's calls to Stripe by itself"
    )
    fields = {
        "event_name": METRIC,
        "identifier": _FOREIGN_KEY,
        "payload[stripe_customer_id]": scene.shop.ref("cora"),
        "payload[value]": FOREIGN_UNITS,
    }
    scene.stripe.post("/v1/billing/meter_events", fields)

    def is_told() -> bool | None:
        return any(cause["cause"] == "foreign" for _, cause in scene.findings()) or None

    wait_until(is_told, SETTLE_SECONDS_MAX, "foreign usage is found")
    report = scene.meter.get(f"/v1/reconciliation/{scene.shop.month}")
    found = [
        (one["customerRef"], one["cause"], one["units"], one["action"])
        for one in report["suggestedAdjustments"]
    ]
    scene.expect(found, [("cora", "foreign", f"-{FOREIGN_UNITS}", "take_back")], "suggestions")
    scene.teller.does(
        f"finding: `foreign`, Stripe holds {FOREIGN_UNITS} of Cora's that were never pushed; taking them back is suggested, not done"
    )
    verdict = scene.meter.get(f"/v1/parity/{scene.shop.month}", maxAgeSeconds=0)["verdict"]
    scene.expect(verdict, "red", "a certificate now")
    scene.teller.does("a certificate would be red now")


def whoever_did_it_takes_it_back(scene: Scene) -> None:
    """The foreign usage is cancelled by its maker."""
    scene.teller.happens("Its owner cancels the script's event at Stripe")
    fields = {
        "event_name": METRIC,
        "type": "cancel",
        "cancel[identifier]": _FOREIGN_KEY,
    }
    scene.stripe.post("/v1/billing/meter_event_adjustments", fields)
    scene.teller.does("nothing was pushed against it: it was not ours")
