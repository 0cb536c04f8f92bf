"""Scenario files, `.sim.json` and `.sim.yaml`: found, read with exact numbers, and written back with what was recorded.

Rules kept here:

- A number in a file is the decimal that is written there: `0.1` is a tenth. Neither reader makes a binary float of it.
- A key that is given twice, a number in another notation than decimal and a document deeper than DEPTH_MAX are refused:
  of two prices under one name, nobody knows which one was meant.
- YAML is read as version 1.2: `no` is a text, and so is a date. Anchors and aliases work, within bounds.
- Recording replaces the part `expected` and leaves the rest of a YAML file, comments too, as it is.

It must not know what a scenario means (engine.pricing.scenarios).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from engine.errors import EngineError
from engine.pricing.money import plain_text

SUFFIXES: Final = (".sim.json", ".sim.yaml", ".sim.yml")
FILE_BYTES_MAX: Final = 4 << 20
FILES_MAX: Final = 10_000
DEPTH_MAX: Final = 32
VALUES_MAX: Final = 200_000
"""Of one file after its aliases are followed: ten aliases of ten aliases of ... would be endless otherwise."""

_DECIMAL: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_TAG: Final = "tag:yaml.org,2002:"
_INDENT: Final = "  "


class FileUnreadable(EngineError):
    """The file is not there, too large, not UTF-8, or no JSON or YAML; the message says where."""


def find(paths: Iterable[Path]) -> list[Path]:
    """The scenario files among `paths`: a file as it is named, of a directory all that end in one of SUFFIXES, sorted.

    Raises FileUnreadable for a path that does not exist, for a name that says neither JSON nor YAML and for a directory
    without scenarios: a check that checks nothing must not pass.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.name.endswith(SUFFIXES))
            if not inside:
                message = f"{path}: has no files that end in {', '.join(SUFFIXES)}"
                raise FileUnreadable(message)
            found += inside
        elif not path.exists():
            message = f"{path}: there is no such file"
            raise FileUnreadable(message)
        elif path.suffix not in (".json", ".yaml", ".yml"):
            message = f"{path}: must end in .json, .yaml or .yml"
            raise FileUnreadable(message)
        else:
            found.append(path)
    if len(found) > FILES_MAX:
        message = f"{len(found)} files are more than {FILES_MAX}: name a part of them"
        raise FileUnreadable(message)
    return found


def read(path: Path) -> object:
    """The document in a file: mappings, lists, texts, booleans, None, and Decimal for every number."""
    content = _content(path)
    if path.suffix == ".json":
        return _read_json(content, path)
    node = _compose(content, path)
    return None if node is None else _Values(path).of(node, 0)


def write_expected(path: Path, expected: Mapping[str, object]) -> None:
    """Replace the file's `expected`, all at once: a reader sees the old file or the new one."""
    content = _content(path)
    if path.suffix == ".json":
        document = _read_json(content, path)
        assert isinstance(document, dict), "a scenario was read from it"
        text = json_text(document | {"expected": expected}) + "\n"
    else:
        text = _with_expected(content, path, expected)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def json_text(value: object, indent: str = "") -> str:
    """JSON with two spaces a level; a Decimal is a number with its digits, never with an exponent."""
    inner = indent + _INDENT
    if isinstance(value, Decimal):
        return plain_text(value)
    if isinstance(value, Mapping):
        rows = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {json_text(one, inner)}"
            for key, one in value.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}" if rows else "{}"
    if isinstance(value, list | tuple):
        rows = [f"{inner}{json_text(one, inner)}" for one in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]" if rows else "[]"
    return json.dumps(value, ensure_ascii=False)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise FileUnreadable(message) from error
    if len(raw) > FILE_BYTES_MAX:
        message = f"{path}: is larger than {FILE_BYTES_MAX >> 20} MiB"
        raise FileUnreadable(message)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path}: is not UTF-8 (byte {error.start})"
        raise FileUnreadable(message) from error


def _read_json(content: str, path: Path) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            message = f"{path}: the field {twice!r} is given twice in one object"
            raise FileUnreadable(message)
        return found

    def no_number(name: str) -> object:
        message = f"{path}: {name} is no number"
        raise FileUnreadable(message)

    try:
        return json.loads(
            content,
            parse_int=Decimal,
            parse_float=Decimal,
            parse_constant=no_number,
            object_pairs_hook=once,
        )
    except json.JSONDecodeError as error:
        message = f"{path}:{error.lineno}:{error.colno}: {error.msg}"
        raise FileUnreadable(message) from error
    except RecursionError:
        message = f"{path}: is nested too deeply"
        raise FileUnreadable(message) from None


def _compose(content: str, path: Path) -> Node | None:
    """The nodes of a YAML document, before any value is made of them."""
    reader: Any = YAML(typ="safe", pure=True)
    try:
        node: Node | None = reader.compose(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        message = f"{path}{where}: {error.problem or error.context or 'no YAML'}"
        raise FileUnreadable(message) from error
    except YAMLError as error:
        message = f"{path}: {' '.join(str(error).split())}"
        raise FileUnreadable(message) from error
    except RecursionError:
        message = f"{path}: is nested too deeply"
        raise FileUnreadable(message) from None
    return node


class _Values:
    """Makes values of YAML nodes; counts them, since an alias is followed each time it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = 0

    def of(self, node: Node, depth: int) -> object:
        """The value of a node."""
        self._made += 1
        if depth > DEPTH_MAX:
            raise self._refused(node, f"is nested deeper than {DEPTH_MAX}, or in itself")
        if self._made > VALUES_MAX:
            raise self._refused(node, f"the file has more than {VALUES_MAX} values")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, SequenceNode):
            return [self.of(one, depth + 1) for one in node.value]
        if not isinstance(node, MappingNode):
            raise self._refused(node, "is no value")
        found: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._refused(key, "a field's name must be a text")
            if key.value in found:
                raise self._refused(key, f"the field {key.value!r} is given twice")
            found[key.value] = self.of(value, depth + 1)
        return found

    def _scalar(self, node: ScalarNode) -> object:
        kind, written = str(node.tag).removeprefix(_TAG), str(node.value)
        if kind == "null":
            return None
        if kind == "bool":
            return written.lower() == "true"
        if kind in ("int", "float"):
            if _DECIMAL.fullmatch(written):
                return Decimal(written)
            if written.lower().lstrip("+") == ".inf":
                return ".inf"
            raise self._refused(node, f"{written} is no decimal number")
        if kind in ("str", "timestamp"):
            return written
        raise self._refused(node, f"the tag {kind!r} is not understood")

    def _refused(self, node: Node, problem: str) -> FileUnreadable:
        mark = node.start_mark
        return FileUnreadable(f"{self._path}:{mark.line + 1}:{mark.column + 1}: {problem}")


def _with_expected(content: str, path: Path, expected: Mapping[str, object]) -> str:
    """The YAML text with another `expected`; every byte outside that part stays."""
    node = _compose(content, path)
    assert isinstance(node, MappingNode), "a scenario was read from it"
    if node.flow_style:
        message = f"{path}: can't be recorded while it is written in {{ }}: write a field a line"
        raise FileUnreadable(message)
    block = "expected:\n" + "".join(f"{_INDENT}{row}\n" for row in _yaml_rows(expected))
    for key, value in node.value:
        if key.value == "expected":
            start = key.start_mark.index
            end = content.find("\n", max(_last_index(value), key.end_mark.index))
            return content[:start] + block + ("" if end < 0 else content[end + 1 :])
    return content.rstrip("\n") + "\n\n" + block


def _last_index(node: Node) -> int:
    """Where the last scalar of a node ends; a block's own end is only where the next token begins."""
    if isinstance(node, MappingNode) and node.value and not node.flow_style:
        return _last_index(node.value[-1][1])
    if isinstance(node, SequenceNode) and node.value and not node.flow_style:
        return _last_index(node.value[-1])
    # A flow collection or a scalar; of an empty value the mark is already beyond the line.
    return int(node.end_mark.index) - 1 if node.value else int(node.start_mark.index) - 1


def _yaml_rows(value: Mapping[str, object]) -> Iterable[str]:
    for key, one in value.items():
        if isinstance(one, list):
            yield f"{key}:"
            for item in one:
                rows = list(_yaml_rows(item))
                yield f"{_INDENT}- {rows[0]}"
                yield from (f"{_INDENT}{_INDENT}{row}" for row in rows[1:])
        else:
            # JSON's scalars are YAML's.
            yield f"{key}: {json_text(one)}"
