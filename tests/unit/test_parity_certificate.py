"""A certificate that was changed in one place is found, and the place is named; its bytes are pinned."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.billing import same_units
from engine.core.parity import target_verdict
from engine.witness import arithmetic
from engine.witness.arithmetic import check_document, micros_of, quantity_of
from engine.witness.canonical import Document, canonical, parse
from tests.helpers.parity import leaves, resigned, verified

GOLDEN = Path(__file__).parents[1] / "golden" / "parity_v1.json"
DOCUMENT = parse(GOLDEN.read_bytes())
PATHS = leaves(DOCUMENT)


def changed(path: tuple[Any, ...], value: Any) -> Document:
    """The golden certificate with one value put in another's place."""
    document = copy.deepcopy(DOCUMENT)
    holder: Any = document
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return document


def at(path: tuple[Any, ...]) -> Any:
    found: Any = DOCUMENT
    for step in path:
        found = found[step]
    return found


def section_of(path: tuple[Any, ...]) -> str:
    """The place that a finding about this value names."""
    if path[0] in ("chains", "targets"):
        place = f"{path[0]}[{path[1]}]"
        is_nested = isinstance(DOCUMENT[path[0]][path[1]][path[2]], dict | list)
        return f"{place}.{path[2]}" if is_nested else place
    return str(path[1]) if path[0] == "seals" else str(path[0])


def test_the_golden_certificate_is_whole_and_its_bytes_are_canonical() -> None:
    assert check_document(DOCUMENT) == []
    assert canonical(DOCUMENT) + b"\n" == GOLDEN.read_bytes()
    assert {one["verdict"] for one in DOCUMENT["chains"]} == {"green", "waiting", "unbilled"}
    assert len(PATHS) > 150


@pytest.mark.parametrize("path", PATHS, ids=lambda p: ".".join(map(str, p)))
def test_any_single_value_that_was_changed_is_found_and_its_place_named(
    path: tuple[Any, ...],
) -> None:
    old = at(path)
    for other in (None, 0, "", "7", 7, not old, [], {}, f"{old}0", [old]):
        if type(other) is type(old) and other == old:
            continue
        found = check_document(changed(path, other))
        places = [problem.where for problem in found]
        assert "signature" in places, "a signature is over every byte"
        assert section_of(path) in places, (other, places)


@given(st.data())
def test_any_value_in_the_place_of_any_other_is_found(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(PATHS))
    value = data.draw(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.just([])
    )
    old = at(path)
    if type(value) is type(old) and value == old:
        return
    try:
        found = check_document(changed(path, value))
    except UnicodeEncodeError:
        return  # such a text is refused when the file is read
    assert section_of(path) in [problem.where for problem in found]


def without(name: str, index: int) -> Document:
    document = copy.deepcopy(DOCUMENT)
    del document[name][index]
    return document


def swapped(name: str) -> Document:
    document = copy.deepcopy(DOCUMENT)
    document[name] = document[name][::-1]
    return document


def test_what_was_dropped_added_or_reordered_is_found() -> None:
    dropped = [problem.where for problem in check_document(without("chains", 0))]
    assert {"chains", f"chains[{len(DOCUMENT['chains']) - 1}]", "signature"} <= set(dropped)
    reordered = [problem.where for problem in check_document(swapped("chains"))]
    assert {"chains[0]", "chains[1]", "signature"} <= set(reordered)
    added = changed(("extra",), 1)
    assert "extra" in [problem.where for problem in check_document(added)]
    for name in DOCUMENT:
        document = {one: value for one, value in DOCUMENT.items() if one != name}
        places = [problem.where for problem in check_document(document)]
        assert name in places or "signature" in places, name


NUMBERS = [
    ("chains", 0, "events", "count"),
    ("chains", 0, "events", "sum"),
    ("chains", 0, "counter", "sum"),
    ("chains", 0, "counter", "count"),
    ("chains", 0, "total"),
    ("chains", 0, "adjustments", "amount"),
    ("chains", 0, "shares", 0, "share"),
    ("chains", 0, "verdict"),
    ("targets", 0, "local"),
    ("targets", 0, "billable"),
    ("targets", 0, "pushed"),
    ("targets", 0, "due"),
    ("targets", 0, "id"),
    ("targets", 0, "stripe", "units"),
    ("targets", 0, "stripe", "beside"),
    ("targets", 0, "stripe", "expected"),
    ("targets", 0, "intents", "deliveredUnits"),
    ("targets", 0, "projected", "amount"),
    ("targets", 0, "projected", "price"),
    ("targets", 0, "verdict"),
    ("summary", "green"),
    ("verdict",),
]


@pytest.mark.parametrize("path", NUMBERS, ids=lambda p: ".".join(map(str, p)))
def test_a_number_that_contradicts_the_others_is_found_even_if_it_was_signed(
    path: tuple[Any, ...],
) -> None:
    """Arithmetic alone: the seals and the signature are right."""
    old = at(path)
    other: Any = old + 1 if isinstance(old, int) else "12345"
    if path[-1] == "verdict":
        other = "red"
    if path[-1] == "price":
        other = '{"model":"flat","currency":"USD","unitPrice":9}'
    forged = resigned(changed(path, other))
    found = check_document(forged)
    assert found, "something follows from it"
    assert not [p for p in found if p.where == "signature" or "seal" in p.what]


def test_a_bill_that_fits_itself_and_not_the_usage_is_found_even_if_it_was_signed() -> None:
    document = changed(("targets", 0, "billable"), "500")
    document["targets"][0]["projected"] |= {"quantity": "500", "amount": "5.00"}
    found = [problem.where for problem in check_document(resigned(document))]
    assert found == ["targets[0].billable"]


def test_another_key_is_not_the_same_certificate() -> None:
    other = resigned(DOCUMENT)
    assert verified(other) == []
    assert other["publicKey"] != DOCUMENT["publicKey"]
    mixed = DOCUMENT | {"signature": other["signature"]}
    assert [problem.where for problem in check_document(mixed)] == ["signature"]


def test_a_format_that_is_not_known_is_said_and_not_guessed() -> None:
    found = check_document(changed(("format",), "stripemeter-parity-2"))
    assert any(p.where == "format" and "another version" in p.what for p in found)


@given(st.integers(-(10**30), 10**30))
def test_quantities_have_one_text(micros: int) -> None:
    from engine.core.parity import text_of

    text = quantity_of(micros)
    assert text == text_of(micros), "two programs write the same"
    assert micros_of(text) == micros


@pytest.mark.parametrize(
    "text", ["1.0", "01", "-0", "+1", "1.", ".5", "1e3", "0.0000001", " 1", "1\n"]
)
def test_a_quantity_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shortest form"):
        micros_of(text)


UNITS = st.integers(-5, 10**20) | st.integers(10**15 - 20, 10**15 + 20)


@given(
    st.sampled_from(["current", "due", "in_flight", "moved", "held", "finalized", "quarantined"]),
    st.integers(-2, 2),
    UNITS,
    st.integers(-11, 11),
    st.booleans(),
)
def test_both_programs_judge_alike(
    standing: str,
    due: int,
    expected: int,
    more: int,
    is_read: bool,
) -> None:
    units = f"{expected + more}.0" if is_read else None
    said, _why = target_verdict(standing, due, units, str(expected))
    assert said == arithmetic._verdict_of(standing, due, units, Fraction(expected))


@given(UNITS, UNITS)
def test_both_programs_round_as_stripe_does(left: int, right: int) -> None:
    mine = arithmetic._rounded(Fraction(left)) == arithmetic._rounded(Fraction(right))
    assert mine == same_units(left, right)
