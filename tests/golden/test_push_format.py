"""The bytes of push records, for ever: a change of any of these breaks every log in the field.

`push_v1.hex` was written once and is never regenerated, as `test_log_format.py` says of its files. The field tables of
`docs/LOG_FORMAT.md` are held against the bytes and the records: a field that is not in the page is a defect.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.core.billing import PushRequest
from engine.core.push_records import (
    PUSH_TYPES,
    Lane,
    PushDecision,
    PushIntent,
    PushOutcome,
    Target,
    identifier_of,
    series_digest,
)
from engine.core.records import ControlRecord, RecordType, decode_control, encode_control
from tests.golden.test_log_format import golden, tables

LANE = Lane("acct_1", "live", "mtr_1", "cus_1")
TARGET = Target(LANE, "0.001", 1_782_864_000_000_000, 1_785_542_400_000_000)
REQUEST = PushRequest(
    driver="meter",
    identifier="0123456789abcdef0123456789abcdef",
    value="-12",
    timestamp_s=1_783_684_800,
    api_version="2026-10-28",
    event_name="calls",
    customer="cus_1",
)
DIGEST = bytes(range(16))
RECORDS: dict[str, ControlRecord] = {
    "PUSH_INTENT meter": PushIntent(
        target=TARGET,
        number=3,
        from_units="100",
        to_units="88",
        request=REQUEST,
        first_sent_at_us=1_783_684_800_000_001,
        tenant_id="acme",
        metric="calls",
    ),
    "PUSH_INTENT usage record": PushIntent(
        target=TARGET,
        number=1,
        from_units="0",
        to_units=str(10**30),
        request=PushRequest(
            driver="usage_record",
            identifier="f",
            value=str(10**30),
            timestamp_s=1_783_684_800,
            api_version="2025-02-24.acacia",
            customer_key="who",
            value_key="many",
            item="si_1",
            connect_account="acct_2",
        ),
        first_sent_at_us=1,
        role="shadow",
    ),
    "PUSH_OUTCOME delivered": PushOutcome(
        target=TARGET, number=3, result="delivered", request_id="req_1"
    ),
    "PUSH_OUTCOME refused": PushOutcome(
        target=TARGET,
        number=4,
        result="refused",
        reason="No such meter",
        code="resource_missing",
        is_target_wide=True,
    ),
    "PUSH_OUTCOME by a person": PushOutcome(
        target=TARGET,
        number=5,
        result="withdrawn",
        proof="person",
        actor="key_1",
        tenant_id="acme",
    ),
    "PUSH_DECISION baseline": PushDecision(
        kind="baseline",
        actor="key_1",
        request_id="req_1",
        target=TARGET,
        choice="stripe",
        units="7",
        reading="7.0",
        because="nothing was pushed to it before",
        tenant_id="acme",
        metric="calls",
    ),
    "PUSH_DECISION carry": PushDecision(
        kind="carry",
        actor="key_1",
        target=TARGET,
        units="-5",
        into="current",
        at_us=1_785_542_400_000_000,
        until_us=1_788_220_800_000_000,
        role="shadow",
    ),
    "PUSH_DECISION stop": PushDecision(kind="stop", actor="stripe", lane=LANE, because="deleted"),
    "PUSH_DECISION finalize": PushDecision(
        kind="finalize",
        actor="stripe:webhook",
        at_us=1_785_542_700_000_000,
        until_us=1_785_542_400_000_000,
        account="acct_1",
        customer="cus_1",
    ),
    "PUSH_DECISION freeze": PushDecision(
        kind="freeze",
        actor="key_1",
        at_us=1_783_684_800_000_000,
        rows=((DIGEST, 1_782_864_000_000_000, str(10**25)),),
    ),
    "PUSH_DECISION keep": PushDecision(
        kind="keep",
        actor="system:eraser",
        target=TARGET,
        micros=str(-(10**25)),
        request=REQUEST,
        rows=((DIGEST, 1_782_864_000_000_000, "0"),),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_push_records_bytes_are_those_of_the_first_release(name: str) -> None:
    record = RECORDS[name]
    record_type, data = encode_control(record)
    assert data.hex() == golden("push_v1.hex")[name].hex()
    assert record_type == RecordType[name.split(maxsplit=1)[0]]
    assert decode_control(record_type, data) == record


def test_identifiers_and_digests_are_those_of_the_first_release() -> None:
    """An open intent is resent by its record; a changed digest would cut customers from what was frozen."""
    known = golden("push_v1.hex")
    identifier = identifier_of(bytes(16), 1, LANE, 1_782_864_000_000_000, 1)
    assert bytes.fromhex(identifier) == known["an identifier"]
    assert series_digest("acme", "calls", "anna") == known["a series digest"]


def wire_names(struct: type[Any]) -> list[str]:
    """The names of a record's fields in the log."""
    return [field.encode_name for field in msgspec.structs.fields(struct)]


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("#### `PUSH_INTENT`", PushIntent),
        ("#### `PUSH_OUTCOME`", PushOutcome),
        ("#### `PUSH_DECISION`", PushDecision),
        ("#### A request", PushRequest),
    ],
)
def test_the_page_names_every_field_of_a_push_record(heading: str, struct: type[Any]) -> None:
    assert [row[0].strip("`") for row in tables(heading)] == wire_names(struct)


def test_what_the_page_says_is_left_out_is_left_out() -> None:
    assert set(PUSH_TYPES) == {14, 15, 16}
    for record in RECORDS.values():
        struct = type(record)
        heading = f"#### `{RecordType(encode_control(record)[0]).name}`"
        defaults = {row[0].strip("`"): row[2] for row in tables(heading)}
        written = msgspec.msgpack.decode(encode_control(record)[1])
        for field in msgspec.structs.fields(struct):
            is_optional = field.default is not msgspec.NODEFAULT
            assert bool(defaults[field.encode_name]) == is_optional, field.name
            if not is_optional:
                assert field.encode_name in written


def test_a_target_is_an_array_as_the_page_has_it() -> None:
    read = msgspec.msgpack.decode(golden("push_v1.hex")["PUSH_OUTCOME delivered"])
    assert read["target"] == [
        ["acct_1", "live", "mtr_1", "cus_1"],
        "0.001",
        1_782_864_000_000_000,
        1_785_542_400_000_000,
    ]
