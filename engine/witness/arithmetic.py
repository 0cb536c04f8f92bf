"""Checks a certificate by itself: its shape, its seals, its signature, and that its numbers follow from each other.

Rules it keeps: whatever is in the file, a finding names the place and says what is wrong there; the rules of docs/parity.md
are written down here a second time, not borrowed from where certificates are made. It must not know logs or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from engine.errors import EngineError
from engine.pricing.line import priced_line
from engine.witness.canonical import Document, is_signed, seals_of
from engine.witness.purposes import PARITY
from engine.witness.spans import EPOCH, us_of

PROBLEMS_MAX: Final = 1_000
_MICROS: Final = 10**6
_QUANTITY: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]{0,5}[1-9])?")
_INSTANT: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{3}|\d{6})Z")
_DIGITS: Final = 15
"""That Stripe can tell apart."""
_NEEDS_NOBODY: Final = ("current", "due", "in_flight", "moved")
_WORST_FIRST: Final = ("red", "waiting", "green", "unbilled")
_UNREADABLE: Final = (KeyError, TypeError, ValueError, IndexError, AttributeError, EngineError)


class Problem(NamedTuple):
    """Something that is wrong: where in the certificate or the log, and what."""

    where: str
    what: str


def micros_of(text: str) -> int:
    """Millionths of a quantity's text. Raises ValueError unless it is in its one form."""
    if _QUANTITY.fullmatch(text) is None or text == "-0":
        message = f"{text!r} is no quantity in its shortest form"
        raise ValueError(message)
    return int(Fraction(text) * _MICROS)


def quantity_of(micros: int) -> str:
    """The text of millionths."""
    whole, rest = divmod(abs(micros), _MICROS)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{'-' if micros < 0 else ''}{whole}{fraction}"


def instant_us(text: str) -> int:
    """Microseconds since 1970 of an instant; the end of year 9999 has none."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        message = f"{text!r} is no instant in UTC"
        raise ValueError(message)
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    at = EPOCH.replace(year=year, month=month, day=day, hour=hour, minute=minute, second=second)
    return us_of(at) + int(match[7].ljust(6, "0"))


def check_document(document: Document) -> list[Problem]:
    """All that is wrong with a certificate by itself; empty: it is whole, signed by its key, and adds up."""
    found = [*_seals(document), *_guarded("certificate", lambda: _arithmetic(document))]
    if not is_signed(PARITY, document):
        where = "signature"
        what = "it is not that of this certificate"
        if not found:
            what += ": it, or the public key, was changed"
        found.append(Problem(where, what))
    return found[:PROBLEMS_MAX]


def _seals(document: Document) -> Iterator[Problem]:
    if document.get("format") != PARITY:
        yield Problem("format", f"is not {PARITY}: another version of this program may read it")
    said = document.get("seals")
    if not isinstance(said, dict):
        yield Problem("seals", "there are none")
        return
    seals = seals_of(document)
    for path in sorted(seals.keys() | said.keys()):
        if path not in said:
            yield Problem(path, "has no seal: it was put in")
        elif path not in seals:
            yield Problem(path, "was taken out: its seal is there")
        elif seals[path] != said[path]:
            yield Problem(path, "was changed, or its seal was")


def _guarded(where: str, check: Callable[[], Iterable[Problem]]) -> list[Problem]:
    """What a check finds; what can't be read is a finding too."""
    try:
        return list(check())
    except _UNREADABLE as error:
        return [Problem(where, f"can't be read: {type(error).__name__}: {error}")]


def _arithmetic(document: Document) -> Iterator[Problem]:
    chains, targets = document["chains"], document["targets"]
    verdicts: dict[str, str] = {one["id"]: one["verdict"] for one in targets}
    shares: dict[str, int] = {}
    for index, chain in enumerate(chains):
        where = f"chains[{index}]"
        yield from _guarded(where, lambda w=where, c=chain: _chain(w, c, verdicts))  # type: ignore[misc]
        for share in chain["shares"]:
            shares[share["target"]] = shares.get(share["target"], 0) + micros_of(share["share"])
    for index, target in enumerate(targets):
        where = f"targets[{index}]"
        share = shares.get(target["id"], 0)
        yield from _guarded(where, lambda w=where, t=target, s=share: _target(w, t, s))  # type: ignore[misc]
    found = [one["verdict"] for one in (*chains, *targets)]
    yield from _expect("verdict", document["verdict"], worst(found))
    counts = {name: found.count(name) for name in _WORST_FIRST}
    counts |= {"chains": len(chains), "targets": len(targets)}
    for name, count in counts.items():
        yield from _expect(f"summary.{name}", document["summary"][name], count)


def _expect(where: str, said: object, follows: object) -> Iterator[Problem]:
    if said != follows or type(said) is not type(follows):
        yield Problem(where, f"says {said!r}, and {follows!r} follows from the rest")


def _chain(where: str, chain: Document, verdicts: dict[str, str]) -> Iterator[Problem]:
    events, counter, held = chain["events"], chain["counter"], chain["adjustments"]
    yield from _expect(
        f"{where}.events.count", events["count"], counter["count"] + held["heldCount"]
    )
    counted = micros_of(counter["sum"]) + micros_of(held["heldSum"])
    yield from _expect(f"{where}.events.sum", events["sum"], quantity_of(counted))
    total = micros_of(chain["total"])
    own = micros_of(counter[chain["aggregation"]])
    amount = micros_of(held["amount"])
    yield from _expect(f"{where}.total", chain["total"], quantity_of(own + amount))
    for part in ("events", "adjustments"):
        first, last = chain[part]["firstPosition"], chain[part]["lastPosition"]
        if (first is None) != (last is None) or (first is not None and first > last):
            yield Problem(f"{where}.{part}", f"its positions are {first} to {last}")
    pushed = total - micros_of(chain["notPushed"])
    for share in chain["shares"]:
        if share["elsewhere"] is not None:
            parts = micros_of(share["share"]) + micros_of(share["elsewhere"])
            yield from _expect(f"{where}.shares", quantity_of(parts), quantity_of(pushed))
    if instant_us(chain["start"]) >= instant_us(chain["end"]):
        yield Problem(where, "its period ends before it begins")
    mains = [verdicts[one["target"]] for one in chain["shares"] if one["role"] == "main"]
    routes = {"pushed": "green", "unbilled": "unbilled", "nowhere": "red", "unresolved": "waiting"}
    pending = ["waiting"] if held["pending"] else []
    follows = worst([routes[chain["routing"]], *mains, *pending])
    yield from _expect(f"{where}.verdict", chain["verdict"], follows)


def _target(where: str, target: Document, shares: int) -> Iterator[Problem]:
    intents, stripe, projected = target["intents"], target["stripe"], target["projected"]
    yield from _expect(f"{where}.id", target["id"], target_id(target))
    local = micros_of(target["local"])
    summed = quantity_of(shares + micros_of(target["kept"]))
    yield from _expect(f"{where}.local", target["local"], summed)
    scaled = Fraction(local, _MICROS) * Fraction(target["stripeScale"])
    own = max(0, scaled.numerator // scaled.denominator)
    carried_in, carried_out = int(target["carriedIn"]), int(target["carriedOut"])
    yield from _expect(f"{where}.billable", target["billable"], str(max(0, own + carried_in)))
    pushed = int(intents["baselineUnits"]) + int(intents["deliveredUnits"])
    pushed -= int(intents["takenBackUnits"])
    yield from _expect(f"{where}.pushed", target["pushed"], str(pushed))
    due = max(0, own + carried_in - carried_out) - pushed
    yield from _expect(f"{where}.due", target["due"], str(due))
    expected = pushed + int(stripe["beside"]) + Fraction(stripe["beyond"])
    if Fraction(stripe["expected"]) != expected:
        yield Problem(f"{where}.stripe.expected", f"says {stripe['expected']}, {expected} follows")
    yield from _expect(f"{where}.projected.quantity", projected["quantity"], target["billable"])
    if projected["price"] is not None:
        start_us, end_us = instant_us(target["start"]), instant_us(target["end"])
        line = priced_line(projected["price"], int(target["billable"]), start_us, end_us)
        yield from _expect(f"{where}.projected.amount", projected["amount"], line.amount)
        yield from _expect(f"{where}.projected.currency", projected["currency"], line.currency)
    verdict = _verdict_of(target["standing"], due, stripe["units"], expected)
    yield from _expect(f"{where}.verdict", target["verdict"], verdict)


def target_id(target: Document) -> str:
    """The id of a target from what it names."""
    names = ("account", "mode", "object", "stripeCustomer", "stripeScale")
    text = "\0".join(target[name] for name in names)
    start_us = instant_us(target["start"])
    return blake2b(f"{text}\0{start_us}".encode(), digest_size=8).hexdigest()


def _verdict_of(standing: str, due: int, units: str | None, expected: Fraction) -> str:
    if standing not in _NEEDS_NOBODY and (due or standing == "quarantined"):
        return "red"
    if standing in ("due", "in_flight", "moved") or units is None:
        return "waiting"
    held = Fraction(units)
    if _rounded(held) == _rounded(expected):
        return "green"
    return "red" if held > expected else "waiting"


def _rounded(units: Fraction) -> Fraction:
    """Half up to as many leading digits as Stripe has."""
    whole = abs(units)
    digits = len(str(whole.numerator // whole.denominator)) if whole >= 1 else 0
    step = Fraction(10) ** max(0, digits - _DIGITS)
    if step == 1:
        return units
    rounded = (whole / step + Fraction(1, 2)).__floor__() * step
    return -rounded if units < 0 else rounded


def worst(verdicts: Iterable[Any]) -> str:
    """The verdict that matters of several; `empty` of none."""
    found = list(verdicts)
    return next((one for one in _WORST_FIRST if one in found), "empty")
