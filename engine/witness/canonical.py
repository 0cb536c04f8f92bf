"""Canonical JSON, the seals of a document's sections, and Ed25519 signatures over them.

Rules it keeps: one document has one sequence of bytes (RFC 8785, of a subset: objects, lists, texts, booleans, null
and whole numbers up to 2^53); what is read is refused if another reader might read it otherwise (a name twice, a
fraction, an exponent); a signature is over a prefix that names its purpose, so that one of an anchor is none of a
certificate. It must not know what a document says, nor where keys lie.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

DOCUMENT_BYTES_MAX: Final = 256 << 20
SEED_BYTES: Final = 32
_SEAL_BYTES: Final = 16
_SAFE_INTEGER_MAX: Final = (1 << 53) - 1
_SIGNED_APART: Final = ("signature",)
_SEALED_APART: Final = ("seals", "signature")
LISTS: Final = ("chains", "targets")
"""Members whose elements are sealed part by part."""

Document = dict[str, Any]


class Unreadable(ValueError):
    """The bytes are not a document that has exactly one meaning; says where and why."""


def canonical(value: Any) -> bytes:
    """The bytes of a value: names sorted, no blanks, UTF-8."""
    # Names are ASCII here, so Python's order of code points is RFC 8785's of UTF-16 units.
    text = json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return text.encode()


def parse(data: bytes) -> Document:
    """The document in some bytes, however they are laid out. Raises Unreadable."""
    if len(data) > DOCUMENT_BYTES_MAX:
        message = f"it has {len(data)} bytes, at most {DOCUMENT_BYTES_MAX} are read"
        raise Unreadable(message)
    try:
        found = json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_float=_no_fraction,
            parse_constant=_no_fraction,
            parse_int=_whole_number,
        )
        canonical(found)
    except (UnicodeError, RecursionError, json.JSONDecodeError) as error:
        message = f"it is not JSON in UTF-8: {error}"
        raise Unreadable(message) from error
    if not isinstance(found, dict):
        raise Unreadable("it is not a JSON object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> Document:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = f"the name {twice[:60]!r} is there twice"
        raise Unreadable(message)
    return found


def _no_fraction(text: str) -> NoReturn:
    message = f"the number {text[:60]} is not whole: quantities are texts here"
    raise Unreadable(message)


def _whole_number(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _SAFE_INTEGER_MAX or text == "-0":
        message = f"the number {text[:60]} is beyond 2^53, or not in its shortest form"
        raise Unreadable(message)
    return int(text)


# Seals.


def sections(document: Document) -> Iterator[tuple[str, Any]]:
    """(path, value) of every part that has a seal of its own; together they are the whole document."""
    for name, value in document.items():
        if name in _SEALED_APART:
            continue
        if name not in LISTS or not isinstance(value, list):
            yield name, value
            continue
        yield name, len(value)
        for index, element in enumerate(value):
            yield from _element_sections(f"{name}[{index}]", element)


def _element_sections(path: str, element: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(element, dict):
        yield path, element
        return
    nested = {name: one for name, one in element.items() if isinstance(one, dict | list)}
    yield path, {name: one for name, one in element.items() if name not in nested}
    for name, one in nested.items():
        yield f"{path}.{name}", one


def seal(path: str, value: Any) -> str:
    """16 bytes of blake2b, in hex, over a section's path and its canonical bytes."""
    data = path.encode() + b"\0" + canonical(value)
    return blake2b(data, digest_size=_SEAL_BYTES).hexdigest()


def seals_of(document: Document) -> dict[str, str]:
    """The seal of every section."""
    return {path: seal(path, value) for path, value in sections(document)}


# Signatures.


def _message(purpose: str, document: Document) -> bytes:
    unsigned = {name: one for name, one in document.items() if name not in _SIGNED_APART}
    return purpose.encode() + b"\n" + canonical(unsigned)


class Signer:
    """Signs documents with one key."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: the private key, 32 bytes."""
        assert len(seed) == SEED_BYTES
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw().hex()
        """32 bytes in hex."""

    def __repr__(self) -> str:
        """Without the key."""
        return f"Signer({self.public_key})"

    def signed(self, purpose: str, document: Document) -> Document:
        """The document with its public key and its signature."""
        whole = document | {"publicKey": self.public_key}
        return whole | {"signature": self._key.sign(_message(purpose, whole)).hex()}

    def sealed(self, purpose: str, document: Document) -> Document:
        """The same with a seal for every section, which are signed too."""
        whole = document | {"publicKey": self.public_key}
        return self.signed(purpose, whole | {"seals": seals_of(whole)})


def is_signed(purpose: str, document: Document) -> bool:
    """Whether the signature is that of the document, by the public key within it."""
    try:
        key = Ed25519PublicKey.from_public_bytes(_hex(document.get("publicKey")))
        key.verify(_hex(document.get("signature")), _message(purpose, document))
    except (InvalidSignature, ValueError):
        return False
    return True


def _hex(text: object) -> bytes:
    """Bytes of lower-case hex: another spelling would be another document with the same signature."""
    data = bytes.fromhex(text) if isinstance(text, str) else b""
    if data.hex() != text:
        raise ValueError("not lower-case hex")
    return data
