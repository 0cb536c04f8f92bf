"""Who asks, what they may do, and for which tenant.

Rules it keeps: the key fixes the tenant; a secret is compared as a keyed hash, in constant time; an unknown key costs
as much as a wrong one; nothing is remembered of an earlier check; refusals are values and name no other tenant.
`identify` is asked for every request, ingest too, so it is synchronous and costs about 3 µs.
It must not know Quart or what an endpoint does.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from engine.config import Settings
from engine.core.api_keys import ADMIN, granted, hash_key, prefix_of, same_hash
from engine.core.records import ApiKey
from engine.core.registry import Registry
from engine.limits import NAME_CHARS_MAX
from gateway.data_directory import DataDirectory
from gateway.problems import Problem

CREDENTIAL_BYTES_MAX: Final = 512
IDENTITIES_MAX: Final = 10_000
_BEARER: Final = b"bearer "
_NO_HASH: Final = bytes(32)


class Identity(NamedTuple):
    """Who asks. `tenant` None: any tenant; `scopes` are single ones (engine.core.api_keys.granted)."""

    tenant: str | None
    scopes: frozenset[str]
    actor: str
    """What the audit log says: the key's id, `anonymous` or `admin-key`."""
    key_id: str | None


ANONYMOUS: Final = Identity(None, granted([ADMIN]), "anonymous", None)
"""Everybody, with auth off."""
_ADMINISTRATOR: Final = Identity(None, granted([ADMIN]), "admin-key", None)

_MISSING: Final = Problem(
    401, "Send an API key as `Authorization: Bearer sm_...` or as `X-API-Key: sm_...`"
)
_WRONG: Final = Problem(
    401, "The API key is not valid: it is unknown, expired, revoked or mistyped"
)
_TWO: Final = Problem(401, "Authorization and X-API-Key hold different keys: send one of them")
_SCHEME: Final = Problem(401, "Authorization must be `Bearer sm_...`")
_RECOVERING: Final = Problem(
    503, "the server is recovering, keys can't be checked yet; retry", retry_after_seconds=2
)


class KeyHolder(Protocol):
    """What is asked of the meter: the registry, and whether it is complete."""

    registry: Registry

    @property
    def phase(self) -> str:
        """`recovering` until the registry is complete."""
        ...


class Access:
    """The gate: one per server."""

    def __init__(
        self, holder: KeyHolder, pepper: bytes, *, required: bool, admin_key: str | None = None
    ) -> None:
        """`pepper` at most 64 bytes."""
        self._holder = holder
        self.pepper = pepper
        self.required = required
        self._identities: dict[str, tuple[ApiKey, Identity]] = {}
        self._admin_hash = None if admin_key is None else hash_key(pepper, admin_key.encode())

    @staticmethod
    def from_settings(settings: Settings, directory: DataDirectory, holder: KeyHolder) -> Access:
        """Access as the settings have it; the pepper is the setting's or the data directory's."""
        return Access(
            holder,
            pepper_of(settings.key_pepper, directory.pepper),
            required=settings.auth_required,
            admin_key=settings.admin_key,
        )

    def identify(
        self, authorization: bytes | None, x_api_key: bytes | None, now_us: int
    ) -> Identity | Problem:
        """Who sends these headers. A 401 says what to send, a 503 that keys are not known yet."""
        if not self.required:
            return ANONYMOUS
        text = x_api_key
        if authorization is not None:
            if authorization[: len(_BEARER)].lower() != _BEARER:
                return _SCHEME
            text = authorization[len(_BEARER) :].strip()
            if x_api_key is not None and x_api_key != text:
                return _TWO
        if not text:
            return _MISSING
        if len(text) > CREDENTIAL_BYTES_MAX:
            return _WRONG
        presented = hash_key(self.pepper, text)
        if self._admin_hash is not None and same_hash(presented, self._admin_hash):
            return _ADMINISTRATOR
        if self._holder.phase == "recovering":
            return _RECOVERING
        prefix = prefix_of(text.decode("latin-1"))
        key = None if prefix is None else self._holder.registry.key_by_prefix(prefix)
        matches = same_hash(presented, _NO_HASH if key is None else key.hash)
        if key is None or not matches or key.revoked_at_us is not None:
            return _WRONG
        if key.expires_at_us is not None and key.expires_at_us <= now_us:
            return _WRONG
        return self._identity_of(key)

    def _identity_of(self, key: ApiKey) -> Identity:
        """Who holds a key: built once for each record, not a result of any check."""
        made = self._identities.get(key.id)
        if made is not None and made[0] is key:
            return made[1]
        if len(self._identities) >= IDENTITIES_MAX:
            self._identities.clear()
        identity = Identity(key.tenant_id, granted(key.scopes), key.id, key.id)
        self._identities[key.id] = (key, identity)
        return identity

    def allows(self, identity: Identity, scope: str) -> bool:
        """Whether the identity has a single scope, such as `usage:read`, or `admin`."""
        return scope in identity.scopes

    def tenant_for(self, identity: Identity, requested: str | None) -> str | Problem:
        """The tenant a request is about: the key's, else the one it names. 403 for another, 400 for none."""
        if identity.tenant is not None:
            if requested is not None and requested != identity.tenant:
                return Problem(403, "tenantId names another tenant than the API key's")
            return identity.tenant
        if requested is None:
            return Problem(
                400,
                "tenantId is missing: name the tenant, since the key (or auth off) stands for all of them",
                errors=(("tenantId", "is missing"),),
            )
        if not 1 <= len(requested) <= NAME_CHARS_MAX:
            message = f"must have 1 to {NAME_CHARS_MAX} characters"
            return Problem(400, f"tenantId {message}", errors=(("tenantId", message),))
        return requested


def pepper_of(setting: str | None, directory_pepper: Callable[[], bytes]) -> bytes:
    """The pepper: of the setting, brought to 32 bytes, else the data directory's own."""
    if setting is None:
        return directory_pepper()
    return blake2b(setting.encode(), digest_size=32).digest()
