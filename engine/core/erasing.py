"""What erasing a customer makes of the log's bytes: the copies of parts without a name, and pseudonyms. Pure.

Rules it keeps: a copy folds to the same numbers, periods and adjustments, for the pseudonym in the name's place; keys
stay, so a retry of an erased event is still a duplicate; the same part and names give the same copy, so that work cut
short by a crash can be done again; what is free text about a customer (resource, meta, notes, the sender's own key
text, Stripe's ids) is gone. It must not know where parts are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any, Final

import msgspec

from engine.core.operations import ERASED_TEXT, mentions
from engine.core.partitions import partition_of
from engine.core.records import KEY_BYTES, RecordError, RecordType

PSEUDONYM_START: Final = "erased_"
KEY_TEXT_START: Final = "erased:"
_PSEUDONYM_BYTES: Final = 10
_PSEUDONYMS: Final = 1 << (8 * _PSEUDONYM_BYTES)
_STRIPE_FIELDS: Final = ("stripeCustomerId", "subscriptionItems", "testClock")
_encode = msgspec.msgpack.Encoder().encode
_decode_any = msgspec.msgpack.Decoder().decode

Names = Mapping[str, str]
"""Name to pseudonym, of one tenant's customers."""


class _Texts(msgspec.Struct, array_like=True):
    customer_names: list[str]
    key_texts: list[str]
    resources: list[str | None]
    metas: list[str | None]


class _Start(msgspec.Struct, array_like=True):
    """A counting part up to its keys."""

    tenant: str
    metric_names: msgspec.Raw
    metric_indexes: msgspec.Raw
    customer_indexes: list[int]
    micros: msgspec.Raw
    times_us: msgspec.Raw
    partitions: msgspec.Raw
    keys: bytes


class _OnlyTenant(msgspec.Struct, array_like=True):
    tenant: str


class _Owner(msgspec.Struct, rename="camel"):
    tenant_id: str


class _OnlyNames(msgspec.Struct, array_like=True):
    customer_names: list[str]


_decode_texts = msgspec.msgpack.Decoder(_Texts).decode
_decode_start = msgspec.msgpack.Decoder(_Start).decode
_decode_tenant = msgspec.msgpack.Decoder(_OnlyTenant).decode
_decode_owner = msgspec.msgpack.Decoder(_Owner).decode
_decode_names = msgspec.msgpack.Decoder(_OnlyNames).decode


def random_pseudonym(tenant: str, name: str, token: Callable[[int], bytes]) -> str:
    """A pseudonym that nothing links to the name, in the name's own partition. Costs some 64 hashes."""
    partition = partition_of(tenant, name)
    number = int.from_bytes(token(_PSEUDONYM_BYTES), "big")
    while True:
        pseudonym = f"{PSEUDONYM_START}{number % _PSEUDONYMS:0{2 * _PSEUDONYM_BYTES}x}"
        if partition_of(tenant, pseudonym) == partition:
            return pseudonym
        number += 1


def stable_pseudonyms(tenant: str, name: str, secret: bytes) -> Iterator[str]:
    """The pseudonyms that whoever has the name and the secret finds again, in the name's own partition, in order.

    A customer who came back and is erased again gets the next one: two histories under one name would be judged late
    by each other's events.
    """
    partition = partition_of(tenant, name)
    for number in count():
        text = f"{tenant}\0{name}\0{number}".encode()
        digest = blake2b(text, digest_size=_PSEUDONYM_BYTES, key=secret[:64]).digest()
        pseudonym = PSEUDONYM_START + digest.hex()
        if partition_of(tenant, pseudonym) == partition:
            yield pseudonym


def erased_texts(counting: bytes, texts: bytes, tenant: str, names: Names) -> bytes | None:
    """An event group's erasable part without these customers; None if none of them is in it. Raises RecordError."""
    try:
        found = [name in names for name in _decode_names(texts).customer_names]
        if not any(found) or _decode_tenant(counting).tenant != tenant:
            return None
        start, part = _decode_start(counting), _decode_texts(texts)
        for row, customer in enumerate(start.customer_indexes):
            if found[customer]:
                key = start.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]
                part.key_texts[row] = KEY_TEXT_START + key.hex()
                part.resources[row] = part.metas[row] = None
        part.customer_names = [names.get(name, name) for name in part.customer_names]
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        raise RecordError(f"an event group can't be read: {error}") from error
    return _encode(part)


def erased_control(record_type: int, data: bytes, tenant: str, names: Names) -> bytes | None:
    """A control record's part without these customers; None if none of them is in it. Raises RecordError.

    `begin` records of erasures and sections of checkpoints are not looked at: they have an end of their own.
    """
    if record_type in (RecordType.ERASE, RecordType.CHECKPOINT, RecordType.GENESIS):
        return None
    try:
        tree = _decode_any(data)
        if record_type == RecordType.OPERATION:
            changed = _erase_operation(tree, tenant, names)
        elif record_type == RecordType.SIMULATION:
            changed = _erase_simulation(tree, tenant, names)
        else:
            changed = _erase_tree(tree, None, tenant, names)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise RecordError(f"a control record can't be read: {error}") from error
    return _encode(tree) if changed else None


def _erase_tree(value: Any, owner: str | None, tenant: str, names: Names) -> bool:
    """Erase in place in every map that is about one of the customers; `owner` is the tenant it is in."""
    if isinstance(value, list):
        return sum(_erase_tree(one, owner, tenant, names) for one in value) > 0  # each of them
    if not isinstance(value, dict):
        return False
    owner = value.get("tenantId", owner)
    changed = False
    name = value.get("customerRef")
    if owner == tenant and isinstance(name, str) and name in names:
        changed = True
        value["customerRef"] = names[name]
        if value.get("note") is not None:
            value["note"] = None
        for field in _STRIPE_FIELDS:
            value.pop(field, None)
    return sum(_erase_tree(one, owner, tenant, names) for one in value.values()) > 0 or changed


def _erase_operation(tree: Any, tenant: str, names: Names) -> bool:
    """An operation's payload is a map of its own, in bytes."""
    if tree.get("tenantId") not in (tenant, "") or not tree.get("payload"):
        return False
    payload = _decode_any(tree["payload"])
    changed = False
    if payload.get("customerRef") in names:
        payload["customerRef"] = names[payload["customerRef"]]
        changed = True
    if mentions(payload.get("message", ""), names):
        payload["message"] = ERASED_TEXT
        changed = True
    for error in payload.get("errors", ()):
        if mentions(error[1], names):
            error[1] = ERASED_TEXT
            changed = True
    if changed:
        tree["payload"] = _encode(payload)
    return changed


def is_operation_of(data: bytes, tenant: str) -> bool:
    """Whether an operation's record is about a tenant: what another was sent is nobody else's to take away."""
    try:
        return _decode_owner(data).tenant_id == tenant
    except msgspec.MsgspecError as error:
        raise RecordError(f"an operation's record can't be read: {error}") from error


def _erase_simulation(tree: Any, tenant: str, names: Names) -> bool:
    """A scenario or run about a customer is free text about them: nothing but its ids and time stays."""
    if tree.get("tenantId") != tenant or tree.get("customerRef") not in names:
        return False
    tree["customerRef"] = names[tree["customerRef"]]
    for field in ("name", "document", "result"):
        tree.pop(field, None)
    return True


def nameless(data: bytes) -> bytes:
    """A `begin` record's part without the names."""
    tree = _decode_any(data)
    tree.pop("names", None)
    return _encode(tree)


class Aliases:
    """Pseudonyms of erasures that are not done: what a fold must read in a name's place before their `begin`.

    Half of the customer's parts may be replaced, half not: folded as they are, one customer would be two. A pseudonym
    that is erased in its turn (a tenant departs meanwhile) stands for the name too: the last one is what is read.
    """

    def __init__(self) -> None:
        self._of_tenant: dict[str, dict[str, list[tuple[int, str]]]] = {}

    def __bool__(self) -> bool:
        return bool(self._of_tenant)

    def add(self, tenant: str, names: Names, before_sequence: int) -> None:
        """`names` hold for what lies before a position."""
        of_tenant = self._of_tenant.setdefault(tenant, {})
        for name, pseudonym in names.items():
            of_tenant.setdefault(name, []).append((before_sequence, pseudonym))

    def at(self, tenant: str, sequence: int) -> dict[str, str]:
        """Name to pseudonym for a record of a tenant at a position."""
        of_tenant = self._of_tenant.get(tenant, {})
        found: dict[str, str] = {}
        for name in of_tenant:
            known_as, position = name, sequence
            while (step := _next_step(of_tenant.get(known_as, ()), position)) is not None:
                position, known_as = step
            if known_as != name:
                found[name] = known_as
        return found

    def tenants(self) -> list[str]:
        """Tenants that have any."""
        return list(self._of_tenant)


def _next_step(entries: Sequence[tuple[int, str]], position: int) -> tuple[int, str] | None:
    """The first renaming after a position: where it is, and to what."""
    return next((entry for entry in entries if position < entry[0]), None)
