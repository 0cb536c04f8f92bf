"""What is worth knowing of how pushing is set up, in sentences with the repair: for the start's log and the doctor.

Rules it keeps: no secret and no part of one is in a sentence. It must not know how anything is pushed.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from engine.config import Settings, is_loopback
from engine.core.configured import FINALIZATION_GRACE_US, Mapping
from engine.core.times import HOUR_US


def advice(settings: Settings, mappings: Iterable[Mapping] = ()) -> list[str]:
    """Sentences about these settings and active mappings; none: nothing to say."""
    found = []
    has_key = bool(settings.stripe_secret_key or settings.stripe_test_secret_key)
    if settings.uses_simulator:
        found.append(
            "usage is pushed to the built-in Stripe simulator, nothing of it leaves this machine"
            + (" (STRIPEMETER_SIMULATOR=on: the keys that are set are not used)" if has_key else "")
        )
    elif not has_key:
        found.append(
            "nothing is pushed: set STRIPE_SECRET_KEY, or STRIPEMETER_SIMULATOR=on for the built-in simulator"
        )
    else:
        found += _of_keys(settings)
        found += _of_grace(settings, mappings)
    return found


def _of_keys(settings: Settings) -> list[str]:
    found = []
    if settings.stripe_secret_key is None:
        found.append("only shadow mappings are pushed: STRIPE_SECRET_KEY is not set")
    if not settings.stripe_webhook_secrets:
        found.append(
            "rejected events, final invoices and deleted customers are noticed late, since STRIPE_WEBHOOK_SECRET is "
            "not set: see docs/stripe-setup.md"
        )
    for base in (settings.stripe_api_base, settings.stripe_meter_events_base):
        parts = urlsplit(base or "https://")
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            found.append(
                f"keys travel unencrypted to {parts.hostname}: use https, or a loopback address"
            )
    return found


def _of_grace(settings: Settings, mappings: Iterable[Mapping]) -> list[str]:
    """Late usage that is counted in a period whose invoice is final by then is never billed in it."""
    windows = [
        (
            settings.lateness_us if one.lateness_us is None else one.lateness_us,
            one.finalization_grace_us,
        )
        for one in mappings
        if one.active
    ] or [(settings.lateness_us, FINALIZATION_GRACE_US)]
    worst = max(windows, key=lambda window: window[0] - window[1])
    if worst[0] <= worst[1]:
        return []
    lateness, grace = (f"{us / HOUR_US:g}" for us in worst)
    return [
        f"usage counts for {lateness} h after a period's end, and its invoice is final after {grace} h: what comes in "
        "between waits for a carry-forward decision. Give invoices at Stripe a longer grace period (up to 72 h: "
        "Billing settings, Subscriptions and emails) and mappings the same finalizationGraceHours, or lower "
        "STRIPEMETER_LATENESS_HOURS"
    ]
