"""Shell completion: the printed scripts, sourced in the shells that are there, complete what there is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which `stripemeter` is the one of this interpreter."""
    command = tmp_path / "bin" / "stripemeter"
    command.parent.mkdir()
    root = Path(__file__).parents[2]
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m gateway.cli.main "$@"\n'
    )
    command.chmod(0o755)
    kept = {name: text for name, text in os.environ.items() if not name.startswith("STRIPE")}
    return kept | {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def run(shell: str, text: str, environment: dict[str, str]) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, "-c", text], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def completed(line: str, environment: dict[str, str]) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    return run(
        "bash",
        f"""eval "$(stripemeter completion bash)"
        COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}'
        _stripemeter_completion stripemeter
        printf '%s\\n' "${{COMPREPLY[@]}}"
        complete -p stripemeter >/dev/null""",
        environment,
    ).split()


def test_bash_completes_commands_options_and_choices(environment: dict[str, str]) -> None:
    assert set(completed("stripemeter se", environment)) == {"send", "serve"}
    assert set(completed("stripemeter keys r", environment)) == {"rotate", "revoke"}
    assert completed("stripemeter usage --hist", environment) == ["--history"]
    assert set(completed("stripemeter usage anna --history m", environment)) == {"minute", "month"}
    assert completed("stripemeter completion z", environment) == ["zsh"]
    assert completed("stripemeter nope x", environment) == []


def test_zsh_and_fish_take_their_scripts(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = 0
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0
        script = tmp_path / f"script.{shell}"
        script.write_text(capsys.readouterr().out)
        assert "_STRIPEMETER_COMPLETE" in script.read_text()
        if shutil.which(shell) is not None:
            run(shell, f"{shell} -n {script}", environment)
            found += 1
    if shutil.which("fish") is not None:
        offered = run(
            "fish", f"source {tmp_path}/script.fish; complete -C 'stripemeter ta'", environment
        )
        assert offered.split()[0] == "tail"
    if not found:
        pytest.skip("neither zsh nor fish is installed")


def test_a_shell_that_is_none_is_wrong_usage_and_json_holds_the_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["completion", "tcsh"]) == 2
    capsys.readouterr()
    assert main(["completion", "bash", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shell"] == "bash"
    assert found["script"].startswith("_stripemeter_completion()")
