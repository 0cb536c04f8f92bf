"""AWS Signature Version 4 for object stores, as headers of one request. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; the page's own examples are tests.
It must not know what is asked, nor send anything.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit


class Credentials(NamedTuple):
    """Who asks. Not shown: `repr` would be in a traceback."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Credentials({self.access_key_id})"


def signed_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    credentials: Credentials,
    *,
    region: str,
    at: str,
) -> dict[str, str]:
    """The headers with those that sign them. `at`: `YYYYMMDDTHHMMSSZ`; the path of `url` is encoded already."""
    parts = urlsplit(url)
    digest = sha256(body).hexdigest()
    whole = {name.lower(): value.strip() for name, value in headers.items()}
    whole |= {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": at}
    if credentials.session_token is not None:
        whole["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(whole))
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{whole[name]}" for name in sorted(whole)),
            "",
            names,
            digest,
        )
    )
    scope = f"{at[:8]}/{region}/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in (at[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key_id}/{scope},"
        f"SignedHeaders={names},Signature={signature}"
    )
    return whole | {"authorization": authorization}
