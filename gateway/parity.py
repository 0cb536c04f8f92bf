"""`GET /v1/parity/{month}`: a signed certificate of what was used, counted, pushed, and what Stripe holds.

Rules it keeps: the answer's bytes are the certificate's canonical ones, and those are what is signed; a tenant's key
gets its own tenant's. It must not know how a certificate is made or checked.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from engine.core.periods import bucket_end
from engine.core.times import TimeError, parse_date
from engine.errors import Unavailable
from engine.witness.canonical import canonical
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call

_MONTH: Final = re.compile(r"[0-9]{4}-[0-9]{2}")
AGE_SECONDS_DEFAULT: Final = 300
AGE_SECONDS_MAX: Final = 86_400
_Verdict = Annotated[
    str,
    msgspec.Meta(
        description="`red`: somebody must look; `waiting`: it settles by itself; `green`; `unbilled`; `empty`."
    ),
]
_Link = Annotated[
    dict[str, Any], msgspec.Meta(description="See docs/parity.md: quantities are texts.")
]


class ParityScope(msgspec.Struct, rename="camel"):
    """Whom a certificate is about."""

    tenant_id: str
    customer_ref: str | None


class ParityLog(msgspec.Struct, rename="camel"):
    """The part of the log that it is about: everything up to `position`."""

    id: str
    epoch: int
    position: int
    head_hash: Annotated[
        str, msgspec.Meta(description="Of the last record within, blake2b-256 in hex.")
    ]
    received_at: str


class ParityCertificate(msgspec.Struct, rename="camel", kw_only=True):
    """A certificate; docs/parity.md says what each number is, and `stripemeter parity verify` checks it."""

    format: Annotated[str, msgspec.Meta(examples=["stripemeter-parity-1"])]
    software: str
    issued_at: str
    period: str
    scope: ParityScope
    log: ParityLog
    chains: list[_Link]
    targets: list[_Link]
    summary: dict[str, int]
    verdict: _Verdict
    seals: dict[str, str]
    public_key: Annotated[str, msgspec.Meta(description="Ed25519, 32 bytes in hex.")]
    signature: Annotated[str, msgspec.Meta(description="Ed25519, 64 bytes in hex.")]


def month_bounds(text: str) -> tuple[int, int]:
    """(start, end) of a UTC month in microseconds. Raises TimeError."""
    if _MONTH.fullmatch(text) is None:
        raise TimeError("must be a month, such as 2026-01")
    start_us = parse_date(f"{text}-01")
    return start_us, bucket_end("month", start_us)


async def certify(call: Call) -> Answer | Problem:
    """GET /v1/parity/{month}."""
    assert call.tenant is not None
    month = call.path["month"]
    try:
        since_us, until_us = month_bounds(month)
    except TimeError as error:
        return wrong_fields([("month", str(error))])
    certifier = call.gateway.certifier
    if certifier is None:
        raise Unavailable("this server has no key to sign with", retry_after_seconds=60)
    found = await certifier.certify(
        call.tenant,
        call.query["customerRef"],
        month=month,
        since_us=since_us,
        until_us=until_us,
        age_us_max=call.query["maxAgeSeconds"] * 1_000_000,
    )
    return Answer(await call.gateway.meter.run_blocking(lambda: canonical(found)))


PARITY_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("customerRef", "Only this customer, and whoever shares its Stripe customer."),
    parameters.whole_number(
        "maxAgeSeconds",
        "Readings of Stripe's summaries may be so old; older ones are made anew.",
        0,
        AGE_SECONDS_MAX,
        AGE_SECONDS_DEFAULT,
    ),
)
