"""House rules that no linter knows: docstrings, lengths, names, leftovers, floats, seeds, machine paths."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "wal", "gateway", "sdk/python/stripemeter")
CODE = (*PACKAGES, "sdk/conformance", "tests", "bench")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
RULES_FROM_LINES = 60
"""A module longer than this says what it must not know."""

LEFTOVERS = re.compile(
    r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK|NotImplemented" + r"Error)\b"
)
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:wo" + r"rk|tm" + r"p|ro" + r"ot|ho" + r"me/[a-z]+)/[\w.-]+|bash_" + r"jobs"
)
VAGUE_FILES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py", "base.py"}
VAGUE_CLASS = re.compile(r"(Manager|Helper|Handler|Util|Utils)$")
NO_FLOATS = ("engine/core", "engine/pricing")


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def called_names(node: ast.AST) -> set[str]:
    names = set()
    for call in (child for child in ast.walk(node) if isinstance(child, ast.Call)):
        if isinstance(call.func, ast.Name):
            names.add(call.func.id)
        elif isinstance(call.func, ast.Attribute):
            names.add(call.func.attr)
    return names


every_file = pytest.mark.parametrize(
    "path", [*python_files(*CODE), ROOT / "check.py"], ids=relative
)
every_module = pytest.mark.parametrize("path", python_files(*PACKAGES), ids=relative)
every_test_file = pytest.mark.parametrize("path", python_files("tests"), ids=relative)


@every_file
def test_a_file_says_what_it_is_for_and_keeps_to_its_lengths(path: Path) -> None:
    text = path.read_text()
    if not text and path.name == "__init__.py" and "tests" in path.parts:
        return
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES_MAX, "split it by what it knows"
    docstring = ast.get_docstring(tree)
    assert docstring, "every module says what it is for"
    assert len(docstring.split()) >= 3
    for node in functions(tree):
        assert node.end_lineno is not None
        lines = node.end_lineno - node.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@every_module
def test_a_module_of_some_size_says_what_it_must_not_know(path: Path) -> None:
    text = path.read_text()
    if len(text.splitlines()) > RULES_FROM_LINES:
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert re.search(r"(?i)not\s+know|knows?\s+no", docstring), (
            "rules kept, and what it must not know"
        )


@every_file
def test_there_are_no_leftovers(path: Path) -> None:
    found = LEFTOVERS.search(path.read_text())
    assert found is None, f"{found and found[0]}: finish it, or file it"


@every_module
def test_names_of_files_and_classes_say_what_they_hold(path: Path) -> None:
    assert path.name not in VAGUE_FILES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert not VAGUE_CLASS.search(node.name), f"{node.name}: one noun of the field"


@pytest.mark.parametrize("path", python_files(*NO_FLOATS), ids=relative)
def test_no_float_is_near_a_quantity(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), node.lineno
        assert not (isinstance(node, ast.Name) and node.id == "float"), f"float, line {node.lineno}"
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), (
            f"line {node.lineno}: / makes floats, // does not"
        )


@every_module
def test_nothing_catches_an_assertion(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            assert node.type.id != "AssertionError", "an assertion is a bug: nothing catches it"


@every_module
def test_cancellation_always_passes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if re.search(r"\b(BaseException|Cancelled)\b", caught):
                raises = [child for child in ast.walk(node) if isinstance(child, ast.Raise)]
                assert any(child.exc is None for child in raises), (
                    f"line {node.lineno}: {caught} is caught and not raised again"
                )


@every_test_file
def test_a_test_is_named_by_a_sentence_and_can_fail(path: Path) -> None:
    for node in functions(ast.parse(path.read_text())):
        if not node.name.startswith("test_"):
            continue
        assert len(node.name.split("_")) > 3, f"{node.name} is no sentence"
        can_fail = any(isinstance(child, ast.Assert) for child in ast.walk(node)) or any(
            re.match(r"raises$|warns$|fail|assert|check|verify|expect|run|_run|_check", name)
            for name in called_names(node)
        )
        assert can_fail, f"{node.name} asserts nothing"


@every_test_file
def test_a_random_test_has_a_seed_that_is_shown(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        call = ast.unparse(node.func)
        if call in {"random.Random", "numpy.random.default_rng", "np.random.default_rng"}:
            assert node.args, f"line {node.lineno}: a source without a seed can't be repeated"
            fixed = isinstance(node.args[0], ast.Constant)
            assert fixed or "seed" in ast.unparse(node.args[0]), f"line {node.lineno}: not a seed"
        module_level = re.match(
            r"(random|np\.random|numpy\.random)\.(?!Random$|SystemRandom$|default_rng$)", call
        )
        assert module_level is None, f"line {node.lineno}: {call} has no seed of its own"


def tracked_files() -> list[Path]:
    """What git has, and what it would take: all that a stranger will read."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_path_of_one_machine_and_no_host_of_a_mirror_is_in_the_repository() -> None:
    wrong = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{relative(path)}: {match[0]}" for match in MACHINE_PATHS.finditer(text)]
        if path.name == "requirements.lock" and "://" in text:
            wrong.append(f"{relative(path)}: a host")
    assert wrong == []


def test_the_rules_themselves_find_what_they_are_for() -> None:
    assert LEFTOVERS.search("# TO" + "DO: later")
    assert MACHINE_PATHS.search("see /wo" + "rk/main/x")
    assert MACHINE_PATHS.search("'/tm" + "p/x'")
    assert MACHINE_PATHS.search("https://example.com/wo" + "rk/x") is None
    assert VAGUE_CLASS.search("LogManager")
    assert len(python_files(*PACKAGES)) > 20
    assert python_files(*NO_FLOATS)
