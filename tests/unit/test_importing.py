"""An import's progress: noted for rows that were acknowledged, and for no other; gone on with from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.core.operations import Progress, RowError
from engine.core.sent_rows import SentRow
from engine.errors import Unavailable
from gateway import importing, row_files
from gateway.cli.main import main
from gateway.import_targets import DirectoryTarget
from gateway.importing import Begun, Files, Import, Outcome
from gateway.row_files import RowFile
from tests.helpers.served import SetClock

LINE = '{"tenantId":"t","metric":"m","customerRef":"c","quantity":1,"idempotencyKey":"k%03d"}\n'


class Sent:
    def __init__(self, target: Target, rows: Sequence[SentRow]) -> None:
        self._target, self._rows = target, rows

    async def settled(self) -> Outcome:
        if self._target.fails_after == 0:
            raise Unavailable("the disk is gone")
        self._target.fails_after -= 1
        self._target.acknowledged += [row.line for row in self._rows]
        return Outcome(new=len(self._rows) - 1, errors=[RowError(self._rows[0].line, "bad")])


class Target:
    """Acknowledges some chunks, then fails; keeps what was noted and what was acknowledged by then."""

    at_once = 3

    def __init__(self, fails_after: int, begun: Begun) -> None:
        self.fails_after, self.begun = fails_after, begun
        self.acknowledged: list[int] = []
        self.noted: list[tuple[Progress, int]] = []
        self.finished: Progress | None = None

    async def begin(self, identity: str) -> Begun:
        assert len(identity) == 32
        return self.begun

    async def send(self, rows: Sequence[SentRow], *, nul: bool) -> Sent:
        assert not nul
        return Sent(self, rows)

    async def note(self, progress: Progress) -> None:
        self.noted.append((progress, len(self.acknowledged)))

    async def finish(self, progress: Progress) -> None:
        self.finished = progress


async def test_progress_is_noted_for_acknowledged_rows_alone_and_the_rest_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "CHUNK_BYTES", 300)
    monkeypatch.setattr(importing, "NOTE_US", 0)
    names = []
    for number in range(2):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(LINE % n for n in range(30)))
        names.append(str(path))

    async def run(target: Target) -> tuple[Import, list[str]]:
        files = Files([RowFile(name, number, None) for number, name in enumerate(names)], "")
        heard: list[str] = []
        one = Import(
            files,
            target,
            SetClock(),
            on_progress=lambda _report, _bytes: None,
            on_error=lambda name, line, error: heard.append(f"{name}:{line}:{error}"),
        )
        try:
            await one.run()
        finally:
            files.close()
        return one, heard

    for fails_after in (0, 1, 4, 12):
        first = Target(fails_after, Begun("op", b"", 0, 0))
        with pytest.raises(Unavailable):
            await run(first)
        assert first.finished is None
        for progress, acknowledged in first.noted:
            assert progress.processed == acknowledged
        last = first.noted[-1][0] if first.noted else Progress(at_us=0)
        before_it = [RowError(n, "of before") for n in range(last.failed)]
        again = Target(1000, Begun("op", last.cursor, last.processed, last.failed, before_it))
        one, heard = await run(again)
        assert one.report.rows + last.processed == 60
        assert one.report.passed_over == last.processed
        assert one.report.failed_before == last.failed
        assert len(heard) == one.report.failed + last.failed == len(one.report.errors)
        assert sum("(an earlier run)" in line for line in heard) == last.failed
        assert again.finished is not None
        assert again.finished.processed == 60
        assert again.finished.failed == last.failed + one.report.failed
        before = first.acknowledged[: last.processed]
        assert before + again.acknowledged == [*range(1, 31), *range(1, 31)]


def test_a_resumed_import_says_what_the_run_before_refused_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, errors = tmp_path / "rows.jsonl", tmp_path / "errors.jsonl"
    path.write_text('{"metric": "m"}\n' + "".join(LINE % n for n in range(60)))
    places = ["--data-dir", str(tmp_path / "data"), "--errors", str(errors)]
    command = ["import", str(path), "--json", *places]
    with monkeypatch.context() as patched:
        # As if it were killed after the last note: nothing ends it.
        patched.setattr(DirectoryTarget, "finish", DirectoryTarget.note)
        assert main(command) == 1
    capsys.readouterr()
    assert main(command) == 1, "a row that does not count is passed over, not forgotten"
    report = json.loads(capsys.readouterr().out)
    assert (report["failed"], report["failedBefore"], report["passedOver"]) == (0, 1, 61)
    assert [error[:2] for error in report["errors"]] == [[str(path), 1]]
    [told] = [json.loads(line) for line in errors.read_text().splitlines()]
    assert (told["file"], told["line"]) == (str(path), 1)
    assert main(["import", str(path), *places]) == 1, "an import of its own: all rows are sent"
    assert "60 counted before, 1 refused" in capsys.readouterr().out
