"""API keys as text and as records: how they are made, hashed, found again, and what their scopes allow.

Rules it keeps: a key is `sm_`, 8 public characters that find it, and 32 secret ones; only a keyed hash of the whole
text is kept; what a scope allows is decided here and nowhere else; `project:*` never includes `admin`. Pure: random
bytes and the time are parameters. It must not know HTTP headers or where a record is stored.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, NamedTuple

import msgspec

from engine.core.configured import Change
from engine.core.records import ApiKey, ApiKeyChange
from engine.core.registry import Registry
from engine.errors import Conflict, NotFound, Refused
from engine.limits import NAME_CHARS_MAX

KEY_START: Final = "sm_"
PREFIX_CHARS: Final = 8
SECRET_CHARS: Final = 32
KEY_CHARS: Final = len(KEY_START) + PREFIX_CHARS + SECRET_CHARS
HASH_BYTES: Final = 32
ID_RANDOM_BYTES: Final = 8
KEY_NAME_CHARS_MAX: Final = 100
KEYS_OF_A_TENANT_MAX: Final = 1000
"""Keys that are not revoked. More is a leak of keys, not a need."""
_ATTEMPTS_MAX: Final = 8
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_BYTES: Final = 40
"""320 bits for 40 characters of 5.95: what is left over makes the bias of the remainder negligible."""

RESOURCES: Final = (
    "events",
    "usage",
    "mappings",
    "reconciliation",
    "adjustments",
    "alerts",
    "simulation",
)
ADMIN: Final = "admin"
SCOPES: Final = frozenset(
    {f"{resource}:{access}" for resource in RESOURCES for access in ("read", "write", "*")}
    | {"project:read", "project:write", "project:*", ADMIN}
)

assert PREFIX_CHARS + SECRET_CHARS == _RANDOM_BYTES
assert len(_ALPHABET) == 62


class NewKey(NamedTuple):
    """A key that was just made: the record to append, and the text that is shown this once."""

    change: ApiKeyChange
    text: str


def granted(scopes: Iterable[str]) -> frozenset[str]:
    """Everything that these scopes allow, as single `resource:read|write` scopes and `admin`.

    `admin` allows all; `x:*` is read and write of x; `project:read|write|*` is that of every resource, not admin.
    """
    found: set[str] = set()
    for scope in scopes:
        resource, _, access = scope.partition(":")
        if scope == ADMIN:
            found.add(ADMIN)
            resource, access = "project", "*"
        resources = RESOURCES if resource == "project" else (resource,)
        found.update(
            f"{one}:{kind}"
            for one in resources
            for kind in (("read", "write") if access == "*" else (access,))
        )
    return frozenset(found)


def hash_key(pepper: bytes, text: bytes) -> bytes:
    """The 32 bytes that are kept of a key. `pepper` is at most 64 bytes."""
    return blake2b(text, digest_size=HASH_BYTES, key=pepper).digest()


def same_hash(left: bytes, right: bytes) -> bool:
    """Whether two hashes are equal, in a time that does not tell where they differ."""
    return compare_digest(left, right)


def prefix_of(text: str) -> str | None:
    """The public part of a key's text; None when this can't be one of our keys."""
    if len(text) != KEY_CHARS or not text.startswith(KEY_START):
        return None
    return text[len(KEY_START) : len(KEY_START) + PREFIX_CHARS]


def created(
    registry: Registry,
    *,
    name: str,
    tenant: str,
    scopes: Iterable[str],
    expires_at_us: int | None,
    pepper: bytes,
    token: Callable[[int], bytes],
    now_us: int,
    change: Change,
) -> NewKey:
    """A new key of a tenant. Raises Refused for a wrong field, Conflict when the tenant has too many."""
    scopes = tuple(dict.fromkeys(scopes))
    _check(name, tenant, scopes, expires_at_us, now_us)
    held = sum(
        1
        for key in registry.api_keys.values()
        if key.tenant_id == tenant and key.revoked_at_us is None
    )
    if held >= KEYS_OF_A_TENANT_MAX:
        raise Conflict(
            f"tenant {tenant!r} has {held} keys, the most there may be: revoke some that are not used"
        )
    text = _new_text(registry, token)
    key = ApiKey(
        id=f"key_{token(ID_RANDOM_BYTES).hex()}",
        name=name,
        tenant_id=tenant,
        prefix=prefix_of(text) or "",
        hash=hash_key(pepper, text.encode()),
        scopes=scopes,
        created_at_us=now_us,
        expires_at_us=expires_at_us,
    )
    return NewKey(ApiKeyChange(action="create", key=key, change=change), text)


def rotated(
    registry: Registry,
    key_id: str,
    tenant: str | None,
    *,
    pepper: bytes,
    token: Callable[[int], bytes],
    now_us: int,
    change: Change,
) -> NewKey:
    """The same key with another text; the old text is worth nothing from then on.

    `tenant` None: of any tenant. Raises NotFound, or Conflict when it is revoked or expired.
    """
    old = find(registry, key_id, tenant)
    if old.revoked_at_us is not None:
        raise Conflict(f"key {key_id} is revoked, which is final: create a new one")
    if old.expires_at_us is not None and old.expires_at_us <= now_us:
        raise Conflict(f"key {key_id} has expired: create a new one")
    text = _new_text(registry, token)
    key = msgspec.structs.replace(
        old, prefix=prefix_of(text) or "", hash=hash_key(pepper, text.encode())
    )
    return NewKey(ApiKeyChange(action="rotate", key=key, change=change), text)


def revoked(
    registry: Registry, key_id: str, tenant: str | None, *, now_us: int, change: Change
) -> ApiKeyChange | None:
    """The key's end, for good; None when it was revoked before. Raises NotFound."""
    old = find(registry, key_id, tenant)
    if old.revoked_at_us is not None:
        return None
    key = msgspec.structs.replace(old, revoked_at_us=now_us)
    return ApiKeyChange(action="revoke", key=key, change=change)


def find(registry: Registry, key_id: str, tenant: str | None) -> ApiKey:
    """A key by its id, of a tenant or (None) of any. Raises NotFound, also for another tenant's."""
    key = registry.api_keys.get(key_id)
    if key is None or (tenant is not None and key.tenant_id != tenant):
        raise NotFound(f"there is no API key {key_id}")
    return key


def keys_of(registry: Registry, tenant: str | None) -> list[ApiKey]:
    """A tenant's keys (None: all tenants'), oldest first, revoked ones too."""
    return [key for key in registry.api_keys.values() if tenant is None or key.tenant_id == tenant]


def _check(
    name: str, tenant: str, scopes: tuple[str, ...], expires_at_us: int | None, now_us: int
) -> None:
    errors: list[tuple[str, str]] = []
    if not 1 <= len(name) <= KEY_NAME_CHARS_MAX:
        errors.append(("name", f"must have 1 to {KEY_NAME_CHARS_MAX} characters"))
    if not 1 <= len(tenant) <= NAME_CHARS_MAX or "\0" in tenant:
        errors.append(("tenantId", f"must have 1 to {NAME_CHARS_MAX} characters, none U+0000"))
    if not scopes:
        errors.append(("scopes", "must name at least one scope"))
    errors += [
        ("scopes", f"{scope[:50]!r} is not a scope; there are {', '.join(sorted(SCOPES))}")
        for scope in scopes
        if scope not in SCOPES
    ]
    if expires_at_us is not None and expires_at_us <= now_us:
        errors.append(("expiresAt", "must be later than now"))
    if errors:
        raise Refused("the API key can't be made; see errors", tuple(errors))


def _new_text(registry: Registry, token: Callable[[int], bytes]) -> str:
    """A key's text whose prefix no other key has."""
    for _ in range(_ATTEMPTS_MAX):
        number = int.from_bytes(token(_RANDOM_BYTES), "big")
        characters = []
        for _position in range(PREFIX_CHARS + SECRET_CHARS):
            number, digit = divmod(number, len(_ALPHABET))
            characters.append(_ALPHABET[digit])
        text = KEY_START + "".join(characters)
        if registry.key_by_prefix(prefix_of(text) or "") is None:
            return text
    message = "the source of random bytes repeats itself"
    raise AssertionError(message)
