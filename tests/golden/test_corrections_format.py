"""The bytes of adjustment and replay records, for ever: a change of any of these breaks every log in the field.

`corrections_v1.hex` was written once and is never regenerated, as `test_log_format.py` says of its files.
"""

from __future__ import annotations

import msgspec
import pytest

from engine.core.configured import Change
from engine.core.quantities import pack
from engine.core.records import (
    AdjustmentChange,
    AdjustmentMade,
    ControlRecord,
    ReplayApply,
    ReplayedCounter,
    decode_control,
    encode_control,
)
from tests.golden.test_log_format import golden

BY = Change(actor="key_1", request_id="req_1")
RECORDS: dict[str, ControlRecord] = {
    "ADJUSTMENT create": AdjustmentChange(
        action="create",
        partition=7,
        change=BY,
        tenant_id="acme",
        adjustment=AdjustmentMade(
            id="adj_0123456789abcdef",
            tenant_id="acme",
            metric="calls",
            customer_ref="c",
            period_start_us=1_767_225_600_000_000,
            period_end_us=1_769_904_000_000_000,
            kind="delta",
            micros=pack(-(10**21) + 1),
            reason="credit",
            request_id="r",
        ),
    ),
    "ADJUSTMENT revert": AdjustmentChange(
        action="revert",
        partition=63,
        change=BY,
        tenant_id="acme",
        ids=("adj_000000000005", "adj_0123456789abcdef"),
        was="approved",
    ),
    "REPLAY": ReplayApply(
        tenant_id="acme",
        plan_hash="00112233445566778899aabbccddeeff",
        counters=(
            ReplayedCounter(
                partition=7,
                tenant_id="acme",
                metric="calls",
                customer_ref="c",
                period_start_us=1_767_225_600_000_000,
                sequences=(5, 9),
                tally=(3_000_000, 2, 2_000_000, 1_000_000, 1_768_000_000_000_000),
            ),
        ),
        change=BY,
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_records_bytes_are_those_of_the_first_release(name: str) -> None:
    record = RECORDS[name]
    record_type, data = encode_control(record)
    assert data.hex() == golden("corrections_v1.hex")[name].hex()
    read = decode_control(record_type, data)
    if isinstance(read, AdjustmentChange) and read.adjustment is not None:
        # A wide quantity is read as a number, and packed by whoever writes one.
        made = msgspec.structs.replace(read.adjustment, micros=pack(read.adjustment.micros))
        read = msgspec.structs.replace(read, adjustment=made)
    assert encode_control(read) == (record_type, data)
