"""All commands as one family: listed, explained with examples that parse, the same options under the same names."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from gateway.cli.main import HELP, cli, main
from gateway.terminal.exits import EXIT_CODES
from gateway.terminal.family import SECTIONS, Listed, module_name, walk
from gateway.terminal.output import (
    PIPE_WIDTH,
    Column,
    Row,
    console,
    number_columns,
    print_table,
    printable,
    raw_text,
    sparkline,
    text_columns,
)

ROOT = Path(__file__).parents[2]
LISTED = [one for _, listed in SECTIONS for one in listed]
FAMILY = {
    "--url": ("URL", "STRIPEMETER_URL"),
    "--api-key": ("KEY", "STRIPEMETER_API_KEY"),
    "--data-dir": ("DIR", None),
    "--tenant": ("ID", ...),
    "--customer": ("REF", None),
    "--metric": ("NAME", None),
    "--period": ("YYYY-MM", None),
    "--output": ("FILE", None),
    "--watch": (None, None),
    "--yes": (None, None),
    "--dry-run": (None, None),
    "--json": (None, None),
    "--no-color": (None, None),
}
"""Option to (metavar, variable): one name for one thing everywhere. `...`: either none or STRIPEMETER_TENANT."""
TENANT_BY_NAME_ALONE = {"erase", "export", "import", "keys create", "keys list"}
"""Where a variable that was set for something else would do harm, or leave rows out unseen."""
HEAVY = ("numpy", "stripe", "quart", "pyarrow", "httpx", "hypercorn", "lmdb", "matplotlib", "trio")


def commands() -> list[tuple[str, click.Command]]:
    """Every command and sub-command with its path."""
    top = click.Context(cli, info_name="stripemeter")
    found: list[tuple[str, click.Command]] = []
    for one in LISTED:
        command = cli.get_command(top, one.name)
        assert command is not None
        found += walk(command, one.name)
    return found


every_command = pytest.mark.parametrize(
    ("path", "command"), commands(), ids=[path for path, _ in commands()]
)


def test_what_is_listed_is_there_and_what_is_there_is_listed() -> None:
    modules = {module.name for module in pkgutil.iter_modules([str(ROOT / "gateway" / "cli")])}
    assert modules - {"main"} == {module_name(one.name) for one in LISTED}
    assert len({one.name for one in LISTED}) == len(LISTED)


@every_command
def test_a_command_is_explained_in_words_and_by_examples(
    path: str, command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path.split(), "-h"]) == 0
    text = capsys.readouterr().out
    assert "\\b" not in text
    assert "\nOptions:\n" in text
    assert command.help is not None
    assert len(command.help.split("\n\n")[0].split()) >= 4, "what it is for, in a sentence"
    assert re.search(rf"Examples:\n +.*stripemeter {path}", text), "at least one of its own"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts[0]} says what it is for"
            if not parameter.is_flag and not isinstance(parameter.type, click.Choice):
                assert parameter.metavar, f"{parameter.opts[0]} says what it takes"


@every_command
def test_an_option_has_one_name_one_text_and_one_variable(
    path: str, command: click.Command
) -> None:
    options = [one for one in command.params if isinstance(one, click.Option)]
    for option in options:
        for name in option.opts:
            if name not in FAMILY:
                continue
            metavar, variable = FAMILY[name]
            assert option.metavar == metavar, f"{path} {name}"
            if variable is ...:
                variable = None if path in TENANT_BY_NAME_ALONE else "STRIPEMETER_TENANT"
            assert option.envvar == variable, f"{path} {name}"
    names = {name for option in options for name in option.opts}
    assert "--no-color" in names
    if not isinstance(command, click.Group):
        assert "--json" in names, "every command speaks to machines"
    assert ("--url" in names) == ("--api-key" in names)


def examples() -> Iterator[str]:
    """Every line of an example that is a command of ours, on its own."""
    texts = [HELP, *(command.help or "" for _, command in commands())]
    for text in texts:
        for block in re.findall(r"Examples:\n(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL):
            yield from (line.strip() for line in block.splitlines() if "stripemeter" in line)


def ours(line: str) -> list[str]:
    """The arguments of the stripemeter in a line of shell."""
    line = re.sub(r" {3,}.*", "", line)  # what a line is for stands to the right of it
    words = shlex.split(line.replace('"$(', "").replace(')"', ""), comments=True)
    words = words[words.index("stripemeter") + 1 :]
    for end in ("|", ">", ";", "&&"):
        if end in words:
            words = words[: words.index(end)]
    return words


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_an_example_of_the_help_can_be_typed(line: str) -> None:
    parent = click.Context(cli, info_name="stripemeter")
    command: click.Command = cli
    words = ours(line)
    while isinstance(command, click.Group):
        if words and not words[0].startswith("-"):
            _, below, words = command.resolve_command(parent, words)
            assert below is not None, line
            command = below
        elif command.invoke_without_command:
            break
        else:
            pytest.fail(f"{line}: names no command")
        parent = command.make_context(command.name, list(words), parent)
        if isinstance(command, click.Group):
            words = [*parent._protected_args, *parent.args]
    assert command is not cli


def test_the_table_of_exit_codes_is_all_that_there_is() -> None:
    known = {one.code for one in EXIT_CODES}
    assert len(known) == len(EXIT_CODES)
    used: dict[int, str] = {}
    for path in [*(ROOT / "gateway").glob("**/*.py")]:
        text = path.read_text()
        if "EXIT_" not in text and path.parent.name != "cli":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(re.search(r"\bEXIT_[A-Z]+\b", ast.unparse(one)) for one in targets):
                    used |= dict.fromkeys(_whole_numbers(node.value), str(path))
            if (
                path.parent.name == "cli"
                and isinstance(node, ast.Return)
                and node.value is not None
            ):
                used |= dict.fromkeys(_whole_numbers(node.value), str(path))
    assert set(used) == known, f"not in the table: {[used[one] for one in set(used) - known]}"
    for path_of, command in commands():
        if match := re.search(r"Exit codes:\n(.*?)(?:\n\s*\n|\Z)", command.help or "", re.DOTALL):
            told = {
                int(line.split()[0]) for line in match[1].splitlines() if line.strip()[:1].isdigit()
            }
            assert told, path_of
            assert told <= known, f"{path_of}: {told - known}"


def _whole_numbers(node: ast.AST) -> list[int]:
    """The whole numbers that an expression may be."""
    if isinstance(node, ast.IfExp):
        return [*_whole_numbers(node.body), *_whole_numbers(node.orelse)]
    if isinstance(node, ast.Tuple):
        return [one for each in node.elts for one in _whole_numbers(each)]
    return [node.value] if isinstance(node, ast.Constant) and type(node.value) is int else []


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    source = ROOT / "ops" / "command_line_page.py"
    spec = importlib.util.spec_from_file_location("command_line_page", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "make it anew: python ops/command_line_page.py"


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a process has loaded which ran this command."""
    program = f"import sys; from gateway.cli.main import main; main({list(arguments)!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["usage", "anna", "--url", "http://127.0.0.1:9"],
        ["send", "calls", "anna", "1", "--url", "http://127.0.0.1:9", "--retry-for", "0"],
        ["tail", "--url", "http://127.0.0.1:9"],
        ["completion", "bash"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_typed_often_starts_without_the_heavy_libraries(arguments: list[str]) -> None:
    found = {name.partition(".")[0] for name in loaded_by(*arguments)}
    assert "click" in found
    assert found.isdisjoint(HEAVY), found & set(HEAVY)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sned", "stripemeter send"),
        ("mapping", "stripemeter mappings"),
        ("keys creat", "stripemeter keys create"),
    ],
)
def test_a_name_that_is_nearly_right_is_told_the_right_one(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert f"did you mean `{meant}`?" in output.err


def test_an_error_is_a_problem_object_for_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(code: int, *arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == code
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        problem: dict[str, Any] = json.loads(line)
        assert problem["exitCode"] == code
        assert problem["type"].startswith("urn:stripemeter:problem:")
        assert problem["title"]
        return problem

    assert "did you mean" in told(2, "keys", "creat")["detail"]
    assert "--nope" in told(2, "usage", "anna", "--nope")["detail"]
    assert "does not answer" in told(1, "usage", "anna", "--url", "http://127.0.0.1:9")["detail"]
    assert "is no server" in told(1, "usage", "anna", "--url", "nowhere")["detail"]
    unsent = ("send", "m", "c", "1", "--retry-for", "0", "--url", "http://127.0.0.1:9")
    assert "--key cli-" in told(4, *unsent)["detail"]
    monkeypatch.setenv("STRIPEMETER_PORT", "x")
    assert "STRIPEMETER_PORT" in told(2, "usage", "anna")["detail"]


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    def isatty(self) -> bool:
        return True


NAMES = ("a" * 90, "cus_" + "x" * 200, "short", "日本語" * 20)
NUMBERS = ("999999999999999.999999", "0.1", "-12345678901234567890.5", "7")


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_long_names_break_no_table_and_a_number_is_never_cut(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    columns = (*text_columns("metric", "customer"), *number_columns("used", "due"), Column("why"))
    rows = [
        Row((metric, customer, used, due, "because " * 5))
        for metric, customer, used, due in zip(
            NAMES, reversed(NAMES), NUMBERS, NUMBERS, strict=True
        )
    ]
    print_table(columns, rows, console(terminal))
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    for number in NUMBERS:
        assert re.search(rf"(?<!\d){re.escape(number)}(?!\d)", text), number
    squeezed = re.sub(r"\s", "", text)
    assert "…" not in text
    if width >= 80:
        widest = max(len(line) for line in text.splitlines())
        assert widest <= width
    else:
        assert "a" * 90 in squeezed, "as blocks, names are whole"
    assert text.count("because") == 5 * len(rows)


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_and_without_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    pipe = io.StringIO()
    print_table(
        text_columns("one", "two"), [Row(("x" * 300, "y" * 300), "bold red")], console(pipe)
    )
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in pipe.getvalue()
    assert len(lines[1]) < PIPE_WIDTH


@pytest.mark.parametrize("off", [{"NO_COLOR": "1"}, {}], ids=["NO_COLOR", "--no-color"])
def test_colour_is_for_a_terminal_and_can_be_turned_off(
    off: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    red = [Row(("x",), "red")]
    coloured = Terminal()
    print_table(text_columns("one"), red, console(coloured))
    assert "\x1b[31m" in coloured.getvalue()
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    seen: list[str] = []

    @click.command()
    def show() -> None:
        plain = Terminal()
        print_table(text_columns("one"), red, console(plain))
        seen.append(plain.getvalue())

    from gateway.terminal.family import no_colour_option

    show.params.append(no_colour_option())
    show.main([] if off else ["--no-color"], standalone_mode=False)
    assert "x" in seen[0]
    assert "\x1b[3" not in seen[0]


def test_a_sparkline_shows_what_is_most_and_what_is_not_nothing() -> None:
    assert sparkline(["0", "0.000001", "50", "100"], 10) == "▁▂▅█"
    assert sparkline(["0", "0"], 10) == "▁▁"
    assert sparkline([], 10) == ""
    assert sparkline(["-5", "5"], 10) == "▁█"
    crowded = sparkline([str(number) for number in range(100)], 30)
    assert len(crowded) <= 30
    assert crowded[-1] == "█"
    assert sparkline(["1", "9", "1", "1"], 2) == "█▂"


def test_every_command_is_listed_with_a_few_words() -> None:
    for one in LISTED:
        assert isinstance(one, Listed)
        assert one.summary[-1] in ".?"
        assert len(one.summary) <= 64


def test_a_name_can_not_move_the_cursor_of_whoever_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for name in ("\x1b[2Jgone", "two\nlines", "bell\x07", "c1\x9b2J", "\u202eright to left"):
        for terminal in (Terminal(), io.StringIO()):
            print_table(text_columns("customer"), [Row((name,))], console(terminal))
            shown = terminal.getvalue()
            assert shown.count("\n") == 2, "a header and a line"
            assert all(one.isprintable() for one in shown.replace("\n", "")), repr(shown)
    assert printable('日本 é "x"') == '日本 é "x"'
    assert raw_text(msgspec.Raw(b'"a\\"b\\u001b"')) == 'a"b\x1b'
    assert raw_text(msgspec.Raw(b"0.100000")) == "0.100000"
    assert raw_text(msgspec.Raw(b"null")) == ""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_its_terminal_and_its_examples_can_still_be_pasted(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for path, command in commands():
        assert main([*path.split(), "--help"]) == 0
        text = capsys.readouterr().out
        # A word or an address may be longer than a line of a very narrow terminal.
        too_long = [line for line in text.splitlines() if len(line) > width >= 80]
        assert too_long == [], path
        pasted = re.sub(r" \\\n +", " ", text)
        for block in re.findall(r"Examples:\n(.*?)(?:\n\s*\n|\Z)", command.help or "", re.DOTALL):
            for line in block.splitlines():
                assert line.strip() in pasted, f"{path}: {line}"


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("", 2)])
def test_what_can_not_be_undone_asks_first(
    answer: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert main(["erase", "--tenant", "acme", "--customer", "anna"]) == code
    said = capsys.readouterr().err
    assert "Erase customer 'anna' of tenant 'acme' for good?" in said
    assert ("nothing was changed" if code == 1 else "give --yes") in said
