"""Depth of JSON: strings and escapes, the exact edge, bodies that are no JSON, hostile bodies."""

from __future__ import annotations

import json
import time

import pytest

from engine.core.json_depth import deeper_than


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"", 0),
        (b"1", 0),
        (b"[]", 1),
        (b"{}", 1),
        (b'{"a":[{"b":[]}]}', 4),
        (b'[[],[[]],{"a":{}}]', 3),
        (b'["[[[[[[[["]', 1),
        (b'{"]]]]":[["}}}}"]]}', 3),
        (b'["]",["]",["]",["]"]]]]', 4),
        (b'["\\"[[[["]', 1),
        (b'["\\\\",[["\\\\\\"]]"]]]', 3),
        (b'["\\\\\\\\",[[]]]', 3),
        (b'["\\u005b[[\\n[\\"",{}]', 2),
        (b'["","",[""]]', 2),
        ('["ü[é]😀",[["[ß"]]]'.encode(), 3),
        (b" [ \n [ \t ] \r ] ", 2),
    ],
)
def test_the_edge_is_exact_and_brackets_in_strings_count_nothing(body: bytes, depth: int) -> None:
    # Padding with shallow neighbours takes the same body past the cheap reject, and past itertools to numpy.
    for padded in (body, b"[]," * 40 + body, body + b",{}" * 400):
        actual = max(depth, 1) if padded is not body else depth
        assert not deeper_than(padded, max(actual, 1))
        if actual > 1:
            assert deeper_than(padded, actual - 1)


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"[" * 5, 5),
        (b"[" * 5 + b"]" * 3 + b"{" * 2, 5),
        (b'[["[[[', 2),
        (b'[["abc\\', 2),
        (b"[[[}}}", 3),
        (b'[[[["\\"', 4),
        (b"[[[[\\", 4),
        (b"\xff[[\xfe[[", 4),
        (b"[[\x00[", 3),
    ],
)
def test_a_body_that_is_no_json_is_measured_up_to_its_error(body: bytes, depth: int) -> None:
    assert deeper_than(body, depth - 1)
    assert not deeper_than(body, depth)


def test_brackets_closed_too_often_buy_no_depth_before_them() -> None:
    assert deeper_than(b"[" * 33 + b"]" * 1_000, 32)
    assert deeper_than(b'["]"' * 33 + b"]" * 33, 32)


@pytest.mark.parametrize("depth_max", [1, 31, 32, 33])
def test_a_real_batch_is_measured_exactly_at_any_limit(depth_max: int) -> None:
    meta: object = 'a "quoted" [text] \\'
    for _ in range(depth_max - 1):
        meta = {"inner": meta}
    shallow = json.dumps([{"meta": 'x "[{" \\'} for _ in range(300)]).encode()
    body = json.dumps([*([0] * 100), meta]).encode()
    if depth_max > 1:
        assert not deeper_than(body, depth_max)
        assert not deeper_than(shallow[:-1] + b"," + body[1:], depth_max)
        assert deeper_than(body, depth_max - 1)
        assert deeper_than(shallow[:-1] + b"," + body[1:], depth_max - 1) == (
            depth_max > 2 or deeper_than(shallow, 1)
        )


@pytest.mark.parametrize("depth", [127, 128, 255, 256, 70_000])
def test_a_limit_beyond_a_byte_or_two_is_exact_too(depth: int) -> None:
    body = b"[" * depth + b"]" * depth + b"{}" * 300
    assert not deeper_than(body, depth)
    assert deeper_than(body, depth - 1)


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("unit", "deep"),
    [
        (b"[", True),
        (b"[]", False),
        (b'"["', False),
        (b'"[",[],', False),
        (b"[" * 32 + b"]" * 32, False),
        (b"[" * 33 + b"]" * 33, True),
        (b"\\", False),
        (b'\\"', False),
        (b'"', False),
        (b'"[\\""', False),
    ],
    ids=repr,
)
def test_a_hostile_mebibyte_is_measured_in_linear_time(unit: bytes, deep: bool) -> None:
    body = unit * (MEBIBYTE // len(unit))
    started = time.process_time()
    assert deeper_than(body, 32) == deep
    assert time.process_time() - started < 0.25
