"""What a command reads from outside before it knows its settings: the environment and `.env`.

Rules it keeps: it is the only place that reads `os.environ` or `.env`; both are read once and handed to
engine.config, which parses them. It must not know what any variable means.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from engine import config
from engine.config import Settings
from engine.dotenv import DOTENV_CHARS_MAX
from engine.errors import SettingsError


class Outside(NamedTuple):
    """All that settings are made from; the arguments of engine.config's functions, in their order."""

    environ: Mapping[str, str]
    dotenv_text: str | None
    overrides: Mapping[str, str]


def read_outside(overrides: Mapping[str, str] | None = None) -> Outside:
    """The environment, the text of `.env` in the working directory (None: no such file), and the flags.

    Raises SettingsError when there is a `.env` that cannot be read as text.
    """
    return Outside(dict(os.environ), _dotenv_text(Path(".env")), dict(overrides or {}))


def read_settings(overrides: Mapping[str, str] | None = None) -> Settings:
    """The settings in force; `overrides` are the command line's flags by variable name. See engine.config.load."""
    return config.load(*read_outside(overrides))


class AwsVariables(NamedTuple):
    """What Amazon's own tools are configured by; it is read only by who needs it, and never checked at a start."""

    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None
    region: str
    endpoint: str | None

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"AwsVariables({self.access_key_id}, {self.region})"


def read_aws() -> AwsVariables:
    """The usual `AWS_` variables of the environment."""
    found = {name: text.strip() or None for name, text in os.environ.items()}
    endpoint = found.get("AWS_ENDPOINT_URL_S3") or found.get("AWS_ENDPOINT_URL")
    return AwsVariables(
        found.get("AWS_ACCESS_KEY_ID"),
        found.get("AWS_SECRET_ACCESS_KEY"),
        found.get("AWS_SESSION_TOKEN"),
        found.get("AWS_REGION") or found.get("AWS_DEFAULT_REGION") or "us-east-1",
        None if endpoint is None else endpoint.rstrip("/"),
    )


def _dotenv_text(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(DOTENV_CHARS_MAX + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        # What some container tools make of a missing file that was to be mounted; it holds no setting.
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f".env cannot be read: {reason}; allowed: a readable text file, or none"
        raise SettingsError(message) from error
