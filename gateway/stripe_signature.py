"""Whether a webhook is from Stripe: its signature and its age, and whether it came before.

Rules it keeps: the body's bytes are signed, so nothing is parsed before they are checked; digests are compared in
constant time; the age counts on this server's clock; of several signatures and secrets one that fits is enough, since
Stripe signs with the old and the new secret while one is rolled. It must not know what an event means.
Source: https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

TOLERANCE_SECONDS: Final = 300
HEADER_CHARS_MAX: Final = 2_048
SIGNATURES_MAX: Final = 16
SEEN_MAX: Final = 10_000
_TIME: Final = re.compile(r"[0-9]{1,12}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def objection(header: str | None, body: bytes, secrets: Sequence[str], now_s: int) -> str | None:
    """Why a webhook is not believed, in words that help whoever set it up; None: it is Stripe's and recent."""
    if header is None:
        return "the header Stripe-Signature is missing"
    if len(header) > HEADER_CHARS_MAX:
        return "the header Stripe-Signature is too long"
    times, signatures = [], []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t" and _TIME.fullmatch(value):
            times.append(value)
        elif name == "v1" and _DIGEST.fullmatch(value):
            signatures.append(value)
    if len(times) != 1 or not 1 <= len(signatures) <= SIGNATURES_MAX:
        return "the header Stripe-Signature is not of the form t=...,v1=..."
    fits = False
    for secret in secrets:
        expected = hmac.new(secret.encode(), times[0].encode() + b"." + body, sha256).hexdigest()
        for signature in signatures:
            # No early end: how long it takes says nothing of which one fits.
            fits |= hmac.compare_digest(expected, signature)
    if not fits:
        return "the signature does not fit: is this endpoint's signing secret in STRIPE_WEBHOOK_SECRET?"
    if abs(now_s - int(times[0])) > TOLERANCE_SECONDS:
        return (
            f"it was signed more than {TOLERANCE_SECONDS} s before or after this server's time: "
            "a replay, or a wrong clock"
        )
    return None


class SeenEvents:
    """Ids of events that were dealt with within the tolerance; an older one would not be believed any more."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def is_new(self, event_id: str, now_s: int) -> bool:
        """Whether an event was not there before; from now on it was."""
        while self._seen:
            oldest_s = next(iter(self._seen.values()))
            if len(self._seen) < SEEN_MAX and now_s - oldest_s <= 2 * TOLERANCE_SECONDS:
                break
            self._seen.popitem(last=False)
        if event_id in self._seen:
            return False
        self._seen[event_id] = now_s
        return True

    def forget(self, event_id: str) -> None:
        """It could not be dealt with: it may come again."""
        self._seen.pop(event_id, None)
