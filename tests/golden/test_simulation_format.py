"""The bytes of simulation records, for ever; `simulation_v1.hex` was written once and is never regenerated."""

from __future__ import annotations

import msgspec
import pytest

from engine.core.configured import Change
from engine.core.erasing import erased_control
from engine.core.records import RecordType, decode_control, encode_control
from engine.core.simulation_records import SIMULATION_TYPES, BatchRow, Simulation
from tests.golden.test_log_format import golden, tables

BY = Change(actor="key_1", request_id="req_1")
RECORDS = {
    "SIMULATION set": Simulation(
        action="set",
        id="sim_0123456789abcdef",
        tenant_id="acme",
        change=BY,
        name="new plan",
        customer_ref="anna",
        document='{"inputs":{"customerId":"anna"}}',
        created_at_us=1_769_853_600_000_000,
        at_us=1_769_853_600_000_001,
    ),
    "SIMULATION delete": Simulation(
        action="delete", id="sim_0123456789abcdef", tenant_id="acme", change=BY
    ),
    "SIMULATION run": Simulation(
        action="run",
        id="run_0123456789abcdef",
        tenant_id="acme",
        change=BY,
        customer_ref="anna",
        document="{}",
        scenario_id="sim_0123456789abcdef",
        result='{"result":{}}',
        passed=False,
        batch_id="batch_0123456789abcdef",
        chars=15,
    ),
    "SIMULATION batch": Simulation(
        action="batch",
        id="batch_0123456789abcdef",
        tenant_id="acme",
        change=BY,
        rows=(BatchRow("run_1", "", passed=True, total="220.00", currency="USD"),),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_simulation_records_bytes_are_those_of_the_first_release(name: str) -> None:
    record_type, data = encode_control(RECORDS[name])
    assert data.hex() == golden("simulation_v1.hex")[name].hex()
    assert record_type == RecordType.SIMULATION
    assert set(SIMULATION_TYPES) == {19}
    assert decode_control(record_type, data) == RECORDS[name]


def test_the_page_names_every_field_and_what_is_left_out() -> None:
    rows = {row[0].strip("`"): row[2] for row in tables("#### `SIMULATION`")}
    fields = msgspec.structs.fields(Simulation)
    assert list(rows) == [field.encode_name for field in fields]
    for field in fields:
        is_optional = field.default is not msgspec.NODEFAULT
        assert bool(rows[field.encode_name]) == is_optional, field.name


def test_an_erased_record_keeps_its_ids_and_nothing_that_was_written_about_the_customer() -> None:
    _, data = encode_control(RECORDS["SIMULATION set"])
    names = {"anna": "erased_1"}
    assert erased_control(19, data, "umbra", names) is None
    assert erased_control(19, data, "acme", {"bert": "erased_2"}) is None
    copy = erased_control(19, data, "acme", names)
    assert copy is not None
    assert b"anna" not in copy
    erased = decode_control(19, copy)
    assert isinstance(erased, Simulation)
    assert (erased.id, erased.customer_ref) == ("sim_0123456789abcdef", "erased_1")
    assert (erased.name, erased.document, erased.result) == ("", "", "")
