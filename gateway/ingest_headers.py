"""What an ingest request's head says of its body: its form, its key, its tenant.

Rules it keeps: the same head says the same each time, whoever sends it; what can't be served is a problem that says
what to send. It must not know who may do what, nor events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from engine.limits import NAME_CHARS_MAX
from gateway.ingest_decoding import CLOUD_EVENT, CLOUD_EVENT_BATCH, JSON
from gateway.problems import Problem

_CONTENT_TYPES: Final = frozenset((JSON, CLOUD_EVENT, CLOUD_EVENT_BATCH, ""))


class IngestHeaders(NamedTuple):
    """What the answer depends on beside the body."""

    content_type: str
    content_encoding: bytes | None
    idempotency_key: str | None
    query_tenant: str | None
    request_id: str
    operation: str | None = None
    """The import that the events are rows of."""

    def of(self, request_id: str) -> IngestHeaders:
        """The same, of a request."""
        content_type, encoding, key, tenant, _, operation = self
        return IngestHeaders(content_type, encoding, key, tenant, request_id, operation)


def read_headers(found: Mapping[bytes, bytes], query_string: bytes) -> IngestHeaders | Problem:
    """What the headers and the query say about the body; of no request yet. The same input gives the same."""
    content_type = (
        found.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    )
    # A browser can send a page's untyped body to a loopback server without asking; a typed one it can't.
    untyped_page = not content_type and b"origin" in found
    if content_type not in _CONTENT_TYPES or untyped_page:
        allowed = ", ".join(sorted(_CONTENT_TYPES - {""}))
        return Problem(415, f"Content-Type must be one of {allowed}")
    key = found.get(b"idempotency-key")
    key_text: str | None = None
    if key is not None:
        try:
            key_text = key.decode()
        except UnicodeDecodeError:
            return Problem(400, "Idempotency-Key must be UTF-8")
        if not 1 <= len(key_text) <= NAME_CHARS_MAX or "\0" in key_text:
            return Problem(400, f"Idempotency-Key must have 1 to {NAME_CHARS_MAX} characters")
    operation = found.get(b"stripemeter-import")
    tenant: str | None = None
    if query_string:
        from gateway.decoding import single_parameter  # noqa: PLC0415 - only CloudEvents senders use a query

        tenant_or_problem = single_parameter(query_string, "tenantId", NAME_CHARS_MAX)
        if isinstance(tenant_or_problem, Problem):
            return tenant_or_problem
        tenant = tenant_or_problem
    return IngestHeaders(
        content_type,
        found.get(b"content-encoding"),
        key_text,
        tenant,
        "",
        None if operation is None else operation.decode("latin-1"),
    )
