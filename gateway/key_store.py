"""API keys for the command line: in a stopped server's directory, or through a running server's HTTP.

Rules it keeps: both ways give the same answers and the same refusals; a directory is locked while it is changed, so
that no server and no second command appends at once; a key's text is given once and is in no file.
It must not know how an answer is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlencode

from engine.actors.recovery import genesis_drafts, read_genesis
from engine.config import Settings
from engine.core import api_keys
from engine.core.api_keys import NewKey
from engine.core.configured import Change
from engine.core.records import (
    ApiKeyChange,
    PartKind,
    RecordError,
    RecordType,
    SettingsChange,
    decode_control,
    encode_control,
)
from engine.core.registry import Registry
from engine.core.times import parse_instant
from engine.errors import EngineError, StartRefused
from gateway import __version__
from gateway.admin_client import AdminClient, AnswerT, url_of
from gateway.api_keys import ApiKeyList, ApiKeyView, NewApiKey, view, view_new
from gateway.auth import pepper_of
from gateway.data_directory import DataDirectory
from gateway.system import SystemClock, SystemIds
from wal.lmdb_log import LmdbLog
from wal.log import Draft, DraftPart, Log, LogError, scan

PAGE_KEYS = 100
ID_BYTES = 16


class KeyStore(Protocol):
    """What `stripemeter keys` does. Every method may raise EngineError or LogError, one line each."""

    def create(
        self, name: str, tenant: str, scopes: tuple[str, ...], expires_at: str | None
    ) -> NewApiKey:
        """Make a key."""
        ...

    def list(self, tenant: str | None) -> list[ApiKeyView]:
        """All keys, of a tenant or (None) of all, oldest first."""
        ...

    def rotate(self, key_id: str) -> NewApiKey:
        """Give a key another text."""
        ...

    def revoke(self, key_id: str) -> ApiKeyView:
        """End a key."""
        ...


@contextmanager
def open_key_store(
    settings: Settings, *, url: str | None, api_key: str | None
) -> Iterator[KeyStore]:
    """The running server's keys if `url` is given or a server has the directory, else the directory's own."""
    directory = DataDirectory(settings.data_path)
    if url is None and directory.holder_pid() is None:
        directory.lock()
        try:
            log = LmdbLog(directory.log_path)
            try:
                pepper = pepper_of(settings.key_pepper, directory.pepper)
                yield DirectoryKeys(log, pepper, settings)
            finally:
                log.close()
        finally:
            directory.release()
        return
    yield ServerKeys(url or url_of(settings), api_key or settings.admin_key)


class DirectoryKeys:
    """Keys in a log that nobody else has open."""

    def __init__(self, log: Log, pepper: bytes, settings: Settings) -> None:
        self._log = log
        self._pepper = pepper
        self._clock = SystemClock()
        self._token = SystemIds().token
        if log.head().next_sequence == 0:
            first = SettingsChange(
                lateness_us=settings.lateness_us,
                late_policy=settings.late_policy,
                actor="cli",
            )
            genesis_drafts(log, self._token(ID_BYTES), __version__, first, self._clock)
        read_genesis(log)
        self._registry = _registry_of(log)

    def create(
        self, name: str, tenant: str, scopes: tuple[str, ...], expires_at: str | None
    ) -> NewApiKey:
        """See KeyStore."""
        made = api_keys.created(
            self._registry,
            name=name,
            tenant=tenant,
            scopes=scopes,
            expires_at_us=None if expires_at is None else parse_instant(expires_at),
            pepper=self._pepper,
            token=self._token,
            now_us=self._clock.now_us(),
            change=Change(actor="cli"),
        )
        return self._append_new(made)

    def list(self, tenant: str | None) -> list[ApiKeyView]:
        """See KeyStore."""
        return [view(key) for key in api_keys.keys_of(self._registry, tenant)]

    def rotate(self, key_id: str) -> NewApiKey:
        """See KeyStore."""
        made = api_keys.rotated(
            self._registry,
            key_id,
            None,
            pepper=self._pepper,
            token=self._token,
            now_us=self._clock.now_us(),
            change=Change(actor="cli"),
        )
        return self._append_new(made)

    def revoke(self, key_id: str) -> ApiKeyView:
        """See KeyStore."""
        change = api_keys.revoked(
            self._registry, key_id, None, now_us=self._clock.now_us(), change=Change(actor="cli")
        )
        if change is not None:
            self._append(change)
        return view(api_keys.find(self._registry, key_id, None))

    def _append_new(self, made: NewKey) -> NewApiKey:
        self._append(made.change)
        return view_new(made)

    def _append(self, change: ApiKeyChange) -> None:
        record_type, data = encode_control(change)
        part = DraftPart(PartKind.CONTROL, data)
        self._log.append([Draft(record_type, 1, self._clock.now_us(), (part,))])
        self._registry.fold(change)


def _registry_of(log: Log) -> Registry:
    """What is configured, folded from the control records; events are passed over."""
    registry = Registry()
    try:
        for record in scan(log, 0):
            if record.envelope.record_type != RecordType.EVENTS:
                registry.fold(decode_control(record.envelope.record_type, record.parts[0].data))
    except (RecordError, LogError) as error:
        message = f"the log can't be read: {error} (`stripemeter check` lists all damage)"
        raise StartRefused(message) from error
    return registry


class ServerKeys:
    """Keys of a running server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._client = AdminClient(url, api_key)

    def create(
        self, name: str, tenant: str, scopes: tuple[str, ...], expires_at: str | None
    ) -> NewApiKey:
        """See KeyStore."""
        body: dict[str, Any] = {"name": name, "tenantId": tenant, "scopes": scopes}
        if expires_at is not None:
            body["expiresAt"] = expires_at
        return self._ask("POST", "", NewApiKey, body)

    def list(self, tenant: str | None) -> list[ApiKeyView]:
        """See KeyStore."""
        found: list[ApiKeyView] = []
        while True:
            asked: dict[str, Any] = {"limit": PAGE_KEYS, "offset": len(found)}
            if tenant is not None:
                asked["tenantId"] = tenant
            page = self._ask("GET", f"?{urlencode(asked)}", ApiKeyList)
            found += page.api_keys
            if not page.api_keys or len(found) >= page.total:
                return found

    def rotate(self, key_id: str) -> NewApiKey:
        """See KeyStore."""
        return self._ask("POST", f"/{_id(key_id)}/rotate", NewApiKey)

    def revoke(self, key_id: str) -> ApiKeyView:
        """See KeyStore."""
        return self._ask("POST", f"/{_id(key_id)}/revoke", ApiKeyView)

    def _ask(
        self, method: str, rest: str, answer: type[AnswerT], body: dict[str, Any] | None = None
    ) -> AnswerT:
        return self._client.ask(method, f"/v1/admin/api-keys{rest}", answer, body)


def _id(key_id: str) -> str:
    if not key_id.isascii() or not key_id.replace("_", "").isalnum():
        raise EngineError(f"{key_id!r} is no key's id; `stripemeter keys list` shows them")
    return key_id
