"""The command line: exit codes, one-line errors, help that teaches, and what the doctor says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from engine import config
from engine.errors import SettingsError, StartRefused
from engine.settings_table import MASK
from gateway import doctor
from gateway.cli import main as cli_main
from gateway.cli.main import cli, main
from gateway.data_directory import DataDirectory
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, LogDamaged

ROOT = Path(__file__).parents[2]
SECRET = "sm_do_not_print_me_0123456789"


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory of its own, and none of our variables."""
    for name in list(os.environ):
        if name.startswith((config.PREFIX, "STRIPE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def commands() -> list[str]:
    return cli.list_commands(click.Context(cli))


def test_help_teaches_with_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in ("Examples:", "stripemeter serve", "Exit codes:", "STRIPEMETER_", *commands()):
        assert part in text


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: stripemeter {name}" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("stripemeter, version ")


@pytest.mark.parametrize("arguments", [["nope"], ["doctor", "--nope"], []])
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (StartRefused("the directory is\nin use"), 1),
        (SettingsError("the directory is\nin use"), 2),
        (LogDamaged("the directory is\nin use"), 1),
    ],
)
def test_an_operating_failure_is_one_line_on_stderr(
    error: Exception,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("gateway.cli.doctor.examine", fail)
    assert main(["doctor"]) == exit_code
    output = capsys.readouterr()
    assert output.err == "stripemeter: the directory is in use\n"
    assert output.out == ""


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("gateway.cli.doctor.examine", fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(["doctor"])


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.cli.doctor.examine", fail)
    assert main(["doctor"]) == cli_main.EXIT_INTERRUPTED


@pytest.mark.slow
def test_optimised_python_is_refused() -> None:
    result = subprocess.run(
        [sys.executable, "-O", "-m", "gateway.cli.main", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("stripemeter: refuses to run under python -O")
    assert result.stdout == ""


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "doctor", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


def test_the_doctor_finds_nothing_wrong_with_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for setting in config.SETTINGS:
        assert setting.name in text
    assert "no problem found" in text
    assert list(tmp_path.iterdir()) == [], "it looks and changes nothing"


def test_the_doctor_masks_secrets_and_says_where_a_value_is_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIPEMETER_ADMIN_KEY", SECRET)
    (tmp_path / ".env").write_text(f"STRIPEMETER_KEY_PEPPER={SECRET}\nSTRIPEMETER_HOST=0.0.0.0\n")
    assert main(["doctor", "--json", "--data-dir", str(tmp_path / "d")]) == 0
    text = capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert SECRET not in text + capsys.readouterr().out
    shown = {s["name"]: (s["value"], s["source"]) for s in json.loads(text)["settings"]}
    assert shown["STRIPEMETER_ADMIN_KEY"] == (MASK, "environment")
    assert shown["STRIPEMETER_KEY_PEPPER"] == (MASK, ".env")
    assert shown["STRIPEMETER_DATA_DIR"] == (str(tmp_path / "d"), "flag")
    assert shown["STRIPEMETER_AUTH"] == ("required", "default"), (
        "what is in force, not an empty cell"
    )


def test_the_doctor_names_every_wrong_setting_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIPEMETER_PORT", "x")
    monkeypatch.setenv("STRIPEMETER_SHARD", "8")
    assert main(["doctor", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [line.split("=")[0].split(":")[0] for line in problems] == [
        "STRIPEMETER_SHARD",
        "STRIPEMETER_PORT",
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("nonsense")
    assert main(["doctor"]) == 1
    assert "problem: .env line 1" in capsys.readouterr().out
    (tmp_path / ".env").write_bytes(b"\xff")
    assert main(["doctor"]) == 1
    assert "problem: .env cannot be read: it is not UTF-8" in capsys.readouterr().out


def test_the_doctor_shows_the_end_of_the_log_and_finds_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    log = LmdbLog(directory.log_path)
    log.append([Draft(1, 5, 1_000_000, (DraftPart(0, b"x" * 100),))])
    log.close()
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["log"]
    assert found["nextSequence"] == 5
    (directory.log_path / "data.mdb").write_bytes(b"\0" * 100_000)
    assert main(["doctor"]) == 1
    assert "problem: the log cannot be opened" in capsys.readouterr().out


def test_the_doctor_says_who_holds_the_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = DataDirectory(tmp_path / "data")
    directory.lock()
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["directory"]["heldByPid"] == os.getpid()
    assert main(["doctor"]) == 0
    assert "in use by a server" in capsys.readouterr().out
    directory.release()


def test_the_doctor_finds_a_bad_directory_a_full_disk_and_an_open_pepper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert "not a directory" in doctor.examine({"STRIPEMETER_DATA_DIR": "file"}).problems[0]
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "not writable" in doctor.examine({}).problems[0]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 62)
    assert "free some space" in doctor.examine({}).problems[0]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    DataDirectory(tmp_path / "data").pepper()
    (tmp_path / "data" / "pepper").chmod(0o644)
    assert "chmod go=" in doctor.examine({}).problems[0]


def test_the_doctor_finds_a_missing_and_another_than_the_pinned_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda _: ["hypercorn==0.0.1", "no-such<3,>=2", 'x; extra == "dev"'],
    )
    report = doctor.examine({})
    assert set(report.libraries) == {"hypercorn", "no-such"}
    assert [line.split(",")[0] for line in report.problems] == [
        f"hypercorn is {report.libraries['hypercorn']}",
        "no-such is missing",
    ]


def test_examples_in_help_are_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "export", "explain", "keys"):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "\\b" not in shown
        assert re.search(rf"Examples:\n +stripemeter {command}", shown), shown
