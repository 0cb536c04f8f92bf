"""That an invoice is final is known of periods in which nothing was pushed yet, after a restart too, and bounded."""

from __future__ import annotations

import pytest
import trio.testing

from engine.core import push_finals
from engine.core.push_finals import KEPT_US
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import plan
from engine.core.push_records import PushDecision
from tests.helpers.push_place import START_US, PushPlace
from tests.helpers.pushing import AUGUST, NOON, TARGET, UNIT, Book, baseline, view

EARLY = AUGUST + 60 * UNIT


def final(
    end_us: int = AUGUST, at_us: int = EARLY, customer: str = TARGET.lane.customer
) -> PushDecision:
    return PushDecision(
        kind="finalize",
        actor="stripe",
        at_us=at_us,
        until_us=end_us,
        account=TARGET.lane.account,
        customer=customer,
    )


def standing(ledger: PushLedger, now_us: int) -> str:
    lane, state = ledger.lane(TARGET.lane), ledger.target(TARGET)
    return plan(view(5), lane, state, now_us=now_us, interval_us=1).standing


def test_what_comes_after_the_invoice_is_final_from_its_beginning() -> None:
    book = Book()
    book.fold(final(), at_us=EARLY)
    book.fold(final(at_us=EARLY + 9), at_us=EARLY + 9)
    again = PushLedger.restore(book.ledger.state())
    for ledger in (book.ledger, again):
        assert standing(ledger, EARLY - 1) == "due"
        assert standing(ledger, EARLY) == "finalized", "the first word counts"
        ledger.fold(baseline(), NOON)
        kept = ledger.target(TARGET)
        assert kept is not None
        assert kept.finalized_at_us == EARLY, "also in the ledger that its first record makes"


@pytest.mark.parametrize(
    ("end_us", "is_final"),
    [(AUGUST, True), (AUGUST + UNIT, False), (AUGUST - UNIT, False)],
)
def test_only_the_invoice_of_its_own_period_ends_a_target(end_us: int, is_final: bool) -> None:
    book = Book()
    book.fold(final(end_us), final(customer="cus_9"), at_us=EARLY)
    assert (standing(book.ledger, EARLY) == "finalized") == is_final


def test_an_end_within_a_second_is_the_invoices_whole_second() -> None:
    finals = Book().fold(final(), at_us=EARLY).ledger.finals
    account, customer = TARGET.lane.account, TARGET.lane.customer
    for end_us, found in ((-1, True), (-999_999, True), (-UNIT, False), (1, True), (UNIT, False)):
        assert (finals.of_period(account, customer, AUGUST + end_us) is not None) == found


def test_what_no_push_can_concern_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_finals, "KEPT_MAX", 3)
    book = Book()
    for number in range(5):
        book.fold(final(customer=f"cus_{number}"), at_us=EARLY)
    assert [row[1] for row in book.ledger.finals.rows()] == ["cus_2", "cus_3", "cus_4"]
    later_us = AUGUST + KEPT_US + UNIT
    book.fold(final(later_us, later_us), at_us=later_us)
    assert [row[1] for row in book.ledger.finals.rows()] == [TARGET.lane.customer]


async def test_invoices_of_customers_whom_nobody_pushes_for_are_not_kept(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.put(meter, "anna", stripe_customer_id="cus_anna")
        desk, account, end_us = meter.started.pusher, place.stripe.account, START_US - UNIT
        for customer, found in (("cus_of_others", 0), ("cus_anna", 1), ("cus_anna", 0)):
            told = await desk.invoice_finalized(account, customer, end_us, START_US, "stripe")
            assert told == found
        long_ago_us = START_US - KEPT_US
        assert not await desk.invoice_finalized(
            account, "cus_anna", long_ago_us, START_US, "stripe"
        )
        assert meter.push.ledger.finals.rows() == [(account, "cus_anna", end_us // UNIT, START_US)]
