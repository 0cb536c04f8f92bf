"""What is read from outside: the environment, and `.env` of the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import SettingsError
from gateway.environment import read_outside, read_settings


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STRIPEMETER_PORT", "STRIPEMETER_SHARDS"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_dotenv_file_there_is_none() -> None:
    assert read_outside().dotenv_text is None
    assert read_settings().port == 3000


def test_flags_environment_and_dotenv_reach_the_settings_in_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("STRIPEMETER_PORT=1\nSTRIPEMETER_SHARDS=2\n")
    assert read_settings().port == 1
    monkeypatch.setenv("STRIPEMETER_PORT", "3")
    assert read_settings().port == 3
    settings = read_settings({"STRIPEMETER_PORT": "4"})
    assert (settings.port, settings.shards) == (4, 2)


def test_a_dotenv_file_that_is_no_text_is_refused_and_a_directory_is_not_one(
    tmp_path: Path,
) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_settings()
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert read_settings().port == 3000


def test_a_huge_dotenv_file_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("#" * (3 << 20))
    with pytest.raises(SettingsError, match="at most"):
        read_settings()
