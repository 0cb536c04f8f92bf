"""`stripemeter simulate`: what it prints, which exit code it has, what it writes, and which files it refuses."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.scenario_files import FileUnreadable, find, json_text, read

EXAMPLES = Path(__file__).parents[2] / "examples" / "pricing"
GOOD = """\
# What a call costs.
name: Calls   # and how it is called
inputs:
  customerId: cus_anna
  periodStart: 2026-01-01
  periodEnd: 2026-02-01
  usageItems:
    - metric: calls
      quantity: 30
      priceConfig: {model: flat, currency: USD, unitPrice: 0.0005}
expected:
  total: 0.02  # rounded half up
# The end.
tolerances: 0
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "calls.sim.yaml"
    path.write_text(GOOD)
    return path


def simulate(*arguments: Any) -> int:
    return main(["simulate", *map(str, arguments)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sim.*")), ids=lambda path: path.name)
def test_every_example_is_valid_and_gives_what_it_expects(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert path.name.endswith(".sim.yaml")
    assert simulate("validate", path) == 0
    assert simulate("run", path, "--fail-on-diff", "--json") == 0
    printed = capsys.readouterr().out
    (one,) = json.loads(printed[printed.index("{") :])["runs"]
    assert one["compared"] > 10, "an example that expects nothing shows nothing"


def test_the_examples_are_run_as_one_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("run", EXAMPLES, "--fail-on-diff") == 0
    assert "6 run, 0 differ" in capsys.readouterr().out


def test_a_difference_is_a_row_and_an_exit_code_only_when_asked_for(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.write_text(GOOD.replace("total: 0.02", "total: 0.03"))
    assert simulate("run", scenario) == 0
    assert simulate("run", scenario, "--fail-on-diff") == 1
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["total", "0.03", "0.02", "-0.01"] in rows


def test_the_report_shows_every_line_with_its_parts(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("report", scenario, "--fail-on-diff") == 0
    printed = capsys.readouterr().out
    assert "units: 30 calls at 0.0005" in printed
    assert "rounding: half up to 0.02 USD" in printed


def test_json_has_exact_numbers_and_the_differences(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.write_text(GOOD.replace("total: 0.02", "total: 0.03"))
    assert simulate("run", scenario, "--json", "--fail-on-diff") == 1
    printed = json.loads(capsys.readouterr().out, parse_float=Decimal)
    (one,) = printed["runs"]
    assert printed["passed"] is one["passed"] is False
    assert one["result"]["total"] == Decimal("0.02")
    assert one["differences"] == [
        {
            "field": "total",
            "expected": Decimal("0.03"),
            "actual": Decimal("0.02"),
            "delta": Decimal("-0.01"),
        }
    ]


def test_a_wrong_file_is_told_by_file_and_field_and_outweighs_a_difference(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = scenario.with_name("wrong.sim.yaml")
    wrong.write_text(GOOD.replace("model: flat", "model: cheap").replace("total: 0.02", "totl: 1"))
    scenario.write_text(GOOD.replace("total: 0.02", "total: 0.03"))
    assert simulate("report", scenario, "--fail-on-diff") == 1
    for command in ("run", "report"):
        assert simulate(command, scenario.parent, "--fail-on-diff") == 2
    assert simulate("validate", scenario.parent) == 2
    printed = capsys.readouterr()
    assert f"{wrong}: inputs.usageItems[0].priceConfig.model: must be one of" in printed.err
    assert f"{wrong}: expected.totl: is not a field here" in printed.err
    assert "1 valid, 1 not" in printed.out


def test_recording_replaces_what_was_expected_and_leaves_the_rest_as_it_was(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.write_text(GOOD.replace("total: 0.02", "total: 0.03"))
    assert simulate("run", scenario, "--record") == 0
    text = scenario.read_text()
    before, after = GOOD[: GOOD.index("expected:")], GOOD[GOOD.index("# The end.") :]
    assert text.startswith(before + "expected:\n")
    assert text.endswith(after)
    assert "  total: 0.02\n" in text
    assert simulate("run", scenario, "--fail-on-diff") == 0
    assert simulate("run", scenario, "--record") == 0
    assert scenario.read_text() == text, "recording twice changes nothing"
    assert [path.name for path in scenario.parent.iterdir()] == [scenario.name]
    capsys.readouterr()


@pytest.mark.parametrize(
    "old",
    [
        "expected: {total: 1}\n",
        "expected:\n  total: 1",
        "expected:\n",
        "",
        "expected:\n  lineItems:\n    - {}\n",
    ],
)
def test_recording_works_wherever_and_however_the_expectation_is_written(
    scenario: Path, old: str
) -> None:
    scenario.write_text(GOOD[: GOOD.index("expected:")] + old)
    assert simulate("run", scenario, "--record") == 0
    assert simulate("run", scenario, "--fail-on-diff") == 0
    assert scenario.read_text().count("expected:") == 1


def test_json_files_are_recorded_with_their_numbers_as_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.sim.json"
    document = read_yaml_text(tmp_path, GOOD)
    path.write_text(json_text(document))
    assert simulate("run", path, "--record") == 0
    assert simulate("run", path, "--fail-on-diff") == 0
    assert '"unitPrice": 0.0005' in path.read_text()
    assert '"total": 0.02' in path.read_text()


def read_yaml_text(directory: Path, text: str) -> Any:
    path = directory / "any.yaml"
    path.write_text(text)
    return read(path)


def test_numbers_are_the_decimals_that_are_written(tmp_path: Path) -> None:
    long = "1234567890.123456789012345678901234567890"
    found = read_yaml_text(tmp_path, f"a: 0.1\nb: {long}\nc: 1e3\nd: .5\ne: '7'\nf: -2\n")
    assert found == {
        "a": Decimal("0.1"),
        "b": Decimal(long),
        "c": Decimal(1000),
        "d": Decimal("0.5"),
        "e": "7",
        "f": Decimal(-2),
    }
    path = tmp_path / "any.json"
    path.write_text(f'{{"a": 0.1, "b": {long}}}')
    assert read(path) == {"a": Decimal("0.1"), "b": Decimal(long)}


def test_other_values_are_what_yaml_1_2_says(tmp_path: Path) -> None:
    found = read_yaml_text(
        tmp_path, "a: no\nb: 2026-01-01\nc: ~\nd: true\ne: .inf\nf: &x [1]\ng: *x\nh:\n"
    )
    one = [Decimal(1)]
    assert found == {
        "a": "no",
        "b": "2026-01-01",
        "c": None,
        "d": True,
        "e": ".inf",
        "f": one,
        "g": one,
        "h": None,
    }
    assert read_yaml_text(tmp_path, "") is None


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(20))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.json", b"{", ":1:2: "),
        ("a.json", b'{"a": 1, "a": 2}', "'a' is given twice"),
        ("a.json", b'{"a": NaN}', "NaN is no number"),
        ("a.json", b"[" * 100_000, "deeply"),
        ("a.json", b"\xff", "UTF-8"),
        ("a.yaml", b"a: 1\na: 2\n", ":2:1: the field 'a' is given twice"),
        ("a.yaml", b"a: 0x10\n", ":1:4: 0x10 is no decimal number"),
        ("a.yaml", b"a: .nan\n", ".nan is no decimal number"),
        ("a.yaml", b"a: [1\nb: 2\n", ":2:"),
        ("a.yaml", b"a: !python/object:os.system x\n", "is not understood"),
        ("a.yaml", b"? [a]\n: 1\n", "must be a text"),
        ("a.yaml", b"a: &a [*a]\n", "in itself"),
        ("a.yaml", b"a: *b\n", "undefined alias"),
        ("a.yaml", b"[" * 5_000, "deeply"),
        ("a.yaml", b"a: \x00\n", "special characters are not allowed"),
        ("a.yaml", b"a: 1\n---\nb: 2\n", ":2:1: but found another document"),
        ("a.yaml", BOMB.encode(), "values"),
        ("a.yaml", b"#" * (5 << 20), "larger than 4 MiB"),
    ],
)
def test_a_file_with_two_meanings_or_none_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, word: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileUnreadable) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert word in str(caught.value)


def test_files_are_found_by_name_and_in_directories(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="no files that end"):
        find([tmp_path])
    with pytest.raises(FileUnreadable, match="no such file"):
        find([tmp_path / "gone.sim.yaml"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileUnreadable, match="must end in"):
        find([tmp_path / "notes.txt"])
    (tmp_path / "deep").mkdir()
    for name in ("b.sim.yml", "a.sim.json", "deep/c.sim.yaml", "other.yaml"):
        shutil.copy(tmp_path / "notes.txt", tmp_path / name)
    names = [str(path.relative_to(tmp_path)) for path in find([tmp_path])]
    assert names == ["a.sim.json", "b.sim.yml", "deep/c.sim.yaml"]
    assert find([tmp_path / "other.yaml"]) == [tmp_path / "other.yaml"]


def test_a_directory_without_scenarios_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("run", tmp_path, "--fail-on-diff") == 2
    assert "has no files" in capsys.readouterr().err
