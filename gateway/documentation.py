"""`/docs`, its script and its style, and how what never changes while the server runs is sent: once.

Rules it keeps: the page asks nobody but this server, and its policy lets it run only what this server sends; what the
client has already is answered 304. It must not know what is documented.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from typing import Final

from gateway.problems import Problem
from gateway.routes import Answer, Call, Header

ASSETS: Final = {
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
}
"""What the page is made of beside itself, with each one's type."""
IF_NONE_MATCH: Final = Header(
    "If-None-Match", "The ETag of an answer that you have.", {"type": "string"}
)
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_TAG_BYTES: Final = 12
_TAGS_MAX: Final = 50


def fixed(call: Call, data: bytes, content_type: str, *more: tuple[str, str]) -> Answer:
    """These bytes under their ETag, or 304 if the client has them. It asks each time: an update shows at once."""
    tag = _tag_of(data)
    headers = (("cache-control", "no-cache"), ("etag", tag), *more)
    if _has(call.headers.get("if-none-match", ""), tag):
        return Answer(b"", 304, headers=headers)
    return Answer(data, content_type=content_type, headers=headers)


@lru_cache(maxsize=8)
def _tag_of(data: bytes) -> str:
    return f'"{blake2b(data, digest_size=_TAG_BYTES).hexdigest()}"'


def _has(if_none_match: str, tag: str) -> bool:
    """Whether the header names the tag (RFC 9110, 13.1.2: compared weakly)."""
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",", _TAGS_MAX)]
    return tag in given or given == ["*"]


@lru_cache(maxsize=len(ASSETS) + 1)
def _file(name: str) -> bytes:
    return (files("gateway.pages") / name).read_bytes()


async def docs(call: Call) -> Answer | Problem:
    """GET /docs."""
    policy = ("content-security-policy", _POLICY)
    return fixed(call, _file("docs.html"), "text/html; charset=utf-8", policy)


async def docs_asset(call: Call) -> Answer | Problem:
    """GET /docs/{asset}."""
    name = call.path["asset"]
    if name not in ASSETS:
        return Problem(404, f"there is no {name[:100]!r} here; there are {', '.join(ASSETS)}")
    return fixed(call, _file(name), ASSETS[name])
