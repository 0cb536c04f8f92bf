"""Which wire a process uses: ours, or httpx where a proxy stands before Stripe.

It must not know Stripe or keys.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from engine.drivers.h11_wire import H11Wire
from engine.drivers.wire import Wire


def open_wire(bases: tuple[str, ...]) -> Wire:
    """A wire for requests to these base URLs.

    Our own, unless the environment names a proxy for one of them (HTTPS_PROXY and its like): then httpx, which speaks
    to proxies and is slower. Two are kept since a proxy's errors are httpx's to know, and since each is the other's test.
    """
    if any(_has_proxy(base) for base in bases):
        # 6 MiB that a process without a proxy need not hold.
        from engine.drivers.httpx_wire import HttpxWire  # noqa: PLC0415

        return HttpxWire()
    return H11Wire()


def _has_proxy(base: str) -> bool:
    """Whether requests there go through a proxy. To this machine itself none does, whatever NO_PROXY says."""
    parts = urlsplit(base)
    host = parts.hostname or ""
    if host == "localhost" or _is_loopback(host):
        return False
    proxies = getproxies()
    if not (parts.scheme in proxies or "all" in proxies):
        return False
    return not proxy_bypass(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
