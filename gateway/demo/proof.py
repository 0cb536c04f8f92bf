"""How the story ends: reconciled, certified, verified from the raw log, and held against Stripe's invoices.

Rules it keeps: what does not agree is written down and shown, and the proof goes on, so that the table has every
number. It must not know what went wrong before.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from gateway.demo.processes import DemoFailed, wait_until
from gateway.demo.reckoning import Row, differences
from gateway.demo.scene import Scene
from gateway.demo.shop import TENANT, instant, stripe_now_s

GREEN_SECONDS_MAX: Final = 15.0
_GRACE_SECONDS: Final = 3_600
"""After a period's end an invoice is a draft; a minute later it is final."""


def parity_is_proven(scene: Scene) -> None:
    """Reconciled, certified, verified; a forged certificate is found out."""
    tell = scene.teller
    tell.happens("Before the invoice: is at Stripe what was used?")
    tell.waits("summaries are late, as Stripe's are; what differs is looked at twice")
    if _becomes_green(scene):
        tell.does("reconciled: no difference is left, every finding is resolved")
    else:
        scene.wrong.append("reconciliation is not green")
    said_by_the_meter = {name: _ask(scene, name) for name in scene.books.used}
    path = scene.running.directory / "parity.json"
    scene.certificate = _certificate(scene, path)
    verdict, log = scene.certificate["verdict"], scene.certificate["log"]
    tell.does(f"stripemeter parity: {verdict}, signed, up to log position {log['position']}")
    if verdict != "green":
        why = {one["reason"] for one in scene.certificate["targets"]} - {None}
        scene.wrong.append(f"the certificate is {verdict}: {', '.join(sorted(why))}")
    scene.expect(scene.running.stop_meter(), 0, "the meter's exit code")
    code, said = scene.running.command(
        "parity", "verify", str(path), "--log", str(scene.running.data_path)
    )
    scene.expect(code, 0, f"stripemeter parity verify, which says {said}")
    tell.does(
        "stripemeter parity verify: recounted from the raw log by code that shares nothing with the meter: right"
    )
    tell.does(f"the same file with one digit changed: {_forged(scene, path)}")
    at_stripe = scene.stripe.totals()
    scene.rows = [
        _row(scene, name, said_by_the_meter[name], at_stripe) for name in scene.books.used
    ]


def stripe_draws_its_invoices(scene: Scene) -> None:
    """Stripe's calendar is turned past the period's end and the grace."""
    tell = scene.teller
    end_s = scene.shop.period_end_s
    tell.happens(f"Stripe's calendar is turned to {instant(end_s)[:10]}: its invoices are drawn")
    ahead_s = end_s + _GRACE_SECONDS + 60 - stripe_now_s(scene.stripe)
    scene.stripe.control("clock", advance_seconds=ahead_s)
    scene.rows = [
        row._replace(invoiced=units, charged=dollars)
        for row in scene.rows
        for units, dollars in [_invoiced(scene, row.customer)]
    ]
    scene.wrong += differences(scene.rows, scene.books)
    if not scene.wrong:
        tell.does("final, and equal to the certificate, line by line and to the cent")


def _becomes_green(scene: Scene) -> bool:
    def is_green() -> bool | None:
        return scene.meter.reconcile(scene.shop.month)["summary"]["green"] or None

    try:
        return wait_until(is_green, GREEN_SECONDS_MAX, "reconciliation is green")
    except DemoFailed:
        return False


def _certificate(scene: Scene, path: Path) -> dict[str, Any]:
    """What `stripemeter parity` writes; its exit code says whether somebody must look."""
    code, said = scene.running.command(
        *("parity", "--tenant", TENANT, "--period", scene.shop.month, "--max-age", "0"),
        *("--output", str(path), "--url", scene.running.meter_url),
    )
    if not path.exists():
        message = f"stripemeter parity ends with {code}: {said}"
        raise DemoFailed(message)
    found: dict[str, Any] = json.loads(path.read_text(), parse_float=Decimal)
    scene.expect(code, int(found["verdict"] == "red"), "the exit code of stripemeter parity")
    return found


def _forged(scene: Scene, path: Path) -> str:
    """Change one digit of a total: where the verification finds it."""
    text = path.read_text()
    (total,) = [one["total"] for one in scene.certificate["chains"] if _ref(one) == "bert"]
    forged = path.with_name("forged.json")
    forged.write_text(text.replace(f'"total":"{total}"', f'"total":"{int(total) - 1}"'))
    code, said = scene.running.command("parity", "verify", str(forged))
    scene.expect(code, 1, "verification of a forged certificate")
    found = [line for line in said.splitlines() if line.startswith("wrong: ")]
    scene.expect(bool(found), True, "places where a forged certificate is wrong")
    return f"{len(found)} places are wrong, the first is {found[0].split(': ')[1]}"


def _ref(chain: dict[str, Any]) -> str:
    return str(chain["customerRef"])


def _ask(scene: Scene, customer: str) -> tuple[Decimal, Decimal, Decimal]:
    """(counted, pushed, projected dollars) as the running meter says it."""
    projected = scene.meter.send("/v1/usage/projection", {"customerRef": customer})
    scene.expect(projected["complete"], True, f"{customer}'s projection is complete")
    pushed = Decimal(scene.target(customer)["pushed"])
    return scene.counted(customer), pushed, Decimal(projected["total"])


def _row(
    scene: Scene,
    customer: str,
    said: tuple[Decimal, Decimal, Decimal],
    at_stripe: dict[str, int],
) -> Row:
    """All but the invoice."""
    (chain,) = [one for one in scene.certificate["chains"] if _ref(one) == customer]
    ref = scene.shop.ref(customer)
    (target,) = [one for one in scene.certificate["targets"] if one["stripeCustomer"] == ref]
    counted, pushed, projected = said
    return Row(
        customer=customer,
        used=scene.books.used[customer],
        counted=counted,
        certified=Decimal(chain["total"]),
        pushed=pushed,
        at_stripe=Decimal(at_stripe.get(ref, 0)),
        invoiced=Decimal(0),
        projected=projected,
        certified_line=Decimal(target["projected"]["amount"]),
        charged=Decimal(0),
    )


def _invoiced(scene: Scene, customer: str) -> tuple[Decimal, Decimal]:
    """(units, dollars) of the period's final invoice."""
    one = scene.shop.subscribed[customer]
    found = scene.stripe.get("/v1/invoices", subscription=one.subscription)["data"]
    (invoice,) = [bill for bill in found if bill["period_end"] == one.period_end_s]
    scene.expect(invoice["status"] in ("open", "paid"), True, f"{customer}'s invoice is final")
    units = sum(line["quantity"] for line in invoice["lines"]["data"])
    return Decimal(units), Decimal(invoice["total"]).scaleb(-2)
