"""Requests that are malformed, hostile or merely unusual, as bytes: what servers have been fooled with.

Each is followed on the same connection by `NEXT`, an innocent request that asks to close: how many answers come back, and
which, shows how the end of the first was read. Sources: RFC 9112 and its security sections, published work on request
smuggling (CL.TE, TE.CL, obs-fold, bare LF, chunk extensions), and what reliability tests here once let through.
"""

from __future__ import annotations

HOST = b"Host: x\r\n"
CLOSE = b"Connection: close\r\n"
LENGTH_4 = b"Content-Length: 4\r\n"
NEXT = b"GET /health/live HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
INGEST = b"POST /v1/events/ingest HTTP/1.1\r\n"
OTHER = b"POST /v1/mappings HTTP/1.1\r\n"
USAGE = b"GET /v1/usage/current?tenantId=a&customerRef=c HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

FRAMING = {
    "plain": LENGTH_4 + b"\r\nabcd",
    "length 0": b"Content-Length: 0\r\n\r\n",
    "length and chunked": LENGTH_4 + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked and length": CHUNKED + LENGTH_4 + b"\r\n0\r\n\r\n",
    "two lengths that differ": LENGTH_4 + b"Content-Length: 5\r\n\r\nabcde",
    "two equal lengths": LENGTH_4 + LENGTH_4 + b"\r\nabcd",
    "a list of lengths": b"Content-Length: 4, 4\r\n\r\nabcd",
    "length with plus": b"Content-Length: +4\r\n\r\nabcd",
    "length below zero": b"Content-Length: -1\r\n\r\n",
    "length in hex": b"Content-Length: 0x4\r\n\r\nabcd",
    "length with underscore": b"Content-Length: 0_4\r\n\r\nabcd",
    "length with zeros": b"Content-Length: 004\r\n\r\nabcd",
    "length empty": b"Content-Length: \r\n\r\n",
    "length of two words": b"Content-Length: 4 4\r\n\r\nabcd",
    "length with decimals": b"Content-Length: 4.0\r\n\r\nabcd",
    "length beyond 64 bits": b"Content-Length: 18446744073709551620\r\n\r\nabcd",
    "length of 30 digits": b"Content-Length: " + b"9" * 30 + b"\r\n\r\nabcd",
    "length in Arabic digits": "Content-Length: ٤\r\n\r\nabcd".encode(),
    "length after a tab": b"Content-Length:\t4\r\n\r\nabcd",
    "length before a tab": b"Content-Length: 4\t\r\n\r\nabcd",
    "blank before the colon": b"Content-Length : 4\r\n\r\nabcd",
    "blank before the coding's colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "no framing": b"\r\n",
    "coding xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding identity": b"Transfer-Encoding: identity\r\n" + LENGTH_4 + b"\r\nabcd",
    "coding empty": b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "coding chunked twice in a line": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding chunked, gzip": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coding in capitals": b"Transfer-Encoding: CHUNKED\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    "coding after a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "coding twice": CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked": CHUNKED + b"\r\n4\r\nabcd\r\n0\r\n\r\n",
    "chunked in three": CHUNKED + b"\r\n1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n",
    "chunk with an extension": CHUNKED + b"\r\n4;a=b\r\nabcd\r\n0\r\n\r\n",
    "chunk extension with LF": CHUNKED + b"\r\n4;a\nx\r\nabcd\r\n0\r\n\r\n",
    "chunks with bare LF": CHUNKED + b"\r\n4\nabcd\n0\n\n",
    "chunk below zero": CHUNKED + b"\r\n-4\r\nabcd\r\n0\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"\r\n0x4\r\nabcd\r\n0\r\n\r\n",
    "chunk of 2^72": CHUNKED + b"\r\nffffffffffffffffff\r\nabcd",
    "chunk without its end": CHUNKED + b"\r\n4\r\nabcdXX0\r\n\r\n",
    "chunk size with a blank": CHUNKED + b"\r\n4 \r\nabcd\r\n0\r\n\r\n",
    "chunk size empty": CHUNKED + b"\r\n\r\nabcd\r\n0\r\n\r\n",
    "a trailer": CHUNKED + b"\r\n4\r\nabcd\r\n0\r\nX: y\r\n\r\n",
    "a length as trailer": CHUNKED + b"\r\n4\r\nabcd\r\n0\r\nContent-Length: 50\r\n\r\n",
    "expect 100": b"Expect: 100-continue\r\n" + LENGTH_4 + b"\r\nabcd",
    "expect something else": b"Expect: 200-ok\r\n" + LENGTH_4 + b"\r\nabcd",
    "two hosts": b"Host: y\r\n" + LENGTH_4 + b"\r\nabcd",
    "folded header": b"X-A: b\r\n c\r\n" + LENGTH_4 + b"\r\nabcd",
    "folded length": b"Content-Length:\r\n 4\r\n\r\nabcd",
    "bare LF after a header": b"X: y\n" + LENGTH_4 + b"\r\nabcd",
    "bare CR in a header": b"X: y\rZ: a\r\n" + LENGTH_4 + b"\r\nabcd",
    "LF hides a coding": b"X: y\n" + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "CR hides a coding": b"X: y\r" + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "NUL in a value": b"X: a\0b\r\n" + LENGTH_4 + b"\r\nabcd",
    "NUL in a name": b"X\0: a\r\n" + LENGTH_4 + b"\r\nabcd",
    "control character in a value": b"X: a\x01b\r\n" + LENGTH_4 + b"\r\nabcd",
    "DEL in a value": b"X: a\x7fb\r\n" + LENGTH_4 + b"\r\nabcd",
    "UTF-8 in a value": "X: é\r\n".encode() + LENGTH_4 + b"\r\nabcd",
    "UTF-8 in a name": "Xé: a\r\n".encode() + LENGTH_4 + b"\r\nabcd",
    "empty name": b": a\r\n" + LENGTH_4 + b"\r\nabcd",
    "empty value": b"X:\r\n" + LENGTH_4 + b"\r\nabcd",
    "no colon": b"Xabc\r\n" + LENGTH_4 + b"\r\nabcd",
    "blank in a name": b"X Y: a\r\n" + LENGTH_4 + b"\r\nabcd",
    "upgrade to websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH_4 + b"\r\nabcd",
    "upgrade to h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" + LENGTH_4 + b"\r\nabcd",
    "connection close": CLOSE + LENGTH_4 + b"\r\nabcd",
    "close in a list": b"Connection: x, Close\r\n" + LENGTH_4 + b"\r\nabcd",
    "close in another header of the name": b"Connection: keep-alive\r\nConnection: close\r\n" + LENGTH_4 + b"\r\nabcd",
    "keep-alive": b"Connection: keep-alive\r\n" + LENGTH_4 + b"\r\nabcd",
    "two authorizations": b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n" + LENGTH_4 + b"\r\nabcd",
    "two content types": b"Content-Type: text/plain\r\nContent-Type: application/json\r\n" + LENGTH_4 + b"\r\nabcd",
    "two request ids": b"X-Request-Id: one\r\nX-Request-Id: two\r\n" + LENGTH_4 + b"\r\nabcd",
    "a header of 15,000 bytes": b"X: " + b"a" * 15_000 + b"\r\n" + LENGTH_4 + b"\r\nabcd",
    "a header of 20,000 bytes": b"X: " + b"a" * 20_000 + b"\r\n" + LENGTH_4 + b"\r\nabcd",
    "a header of 200,000 bytes": b"X: " + b"a" * 200_000 + b"\r\n" + LENGTH_4 + b"\r\nabcd",
    "90 headers": b"".join(b"X%d: 1\r\n" % n for n in range(90)) + LENGTH_4 + b"\r\nabcd",
    "150 headers": b"".join(b"X%d: 1\r\n" % n for n in range(150)) + LENGTH_4 + b"\r\nabcd",
    "garbage after the body": LENGTH_4 + b"\r\nabcd\x16\x03\x01garbage\r\n\r\n",
    "a body of 2 MB": b"Content-Length: %d\r\n\r\n" % (2 << 20) + b"a" * (2 << 20),
}  # fmt: skip
"""What comes after the request line and the Host header."""

LINES = {
    "no host": (b"%b", b""),
    "empty host": (b"%b", b"Host: \r\n"),
    "version 1.0": (b"1.0", HOST),
    "version 1.0 that stays": (b"1.0", HOST + b"Connection: keep-alive\r\n"),
    "version 1.2": (b"1.2", HOST),
    "version 2.0": (b"2.0", HOST),
    "version 11.1": (b"11.1", HOST),
    "version 1,1": (b"1,1", HOST),
}
"""Another version or Host: (version, Host header)."""

ALONE = {
    "usage": USAGE + HOST + b"\r\n",
    "usage with a body": USAGE + HOST + LENGTH_4 + b"\r\nabcd",
    "usage that closes": USAGE + HOST + CLOSE + b"\r\n",
    "usage of the past": USAGE.replace(b" HTTP", b"&asOf=2020-01-01T00:00:00Z HTTP") + HOST + b"\r\n",
    "usage with a wrong parameter": USAGE.replace(b" HTTP", b"&x=%ff HTTP") + HOST + b"\r\n",
    "usage chunked": USAGE + HOST + CHUNKED + b"\r\n0\r\n\r\n",
    "a long path": b"GET /" + b"a" * 12_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path too long": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "high bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a blank in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in the path": b"GET /a\0b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is no UTF-8": b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "connect": b"CONNECT x:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "head": b"HEAD /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "head of ingest": b"HEAD /v1/events/ingest HTTP/1.1\r\n" + HOST + b"\r\n",
    "get of ingest": b"GET /v1/events/ingest HTTP/1.1\r\n" + HOST + b"\r\n",
    "post of usage": USAGE.replace(b"GET", b"POST") + HOST + LENGTH_4 + b"\r\nabcd",
    "get with a body": b"GET /health/live HTTP/1.1\r\n" + HOST + LENGTH_4 + b"\r\nabcd",
    "a websocket": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "an unknown method": b"FROB /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method of 100,000 letters": b"A" * 100_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method with a digit": b"G3T /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "a lower-case method": b"get /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "nothing but line ends": b"\r\n" * 5000,
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "SSH": b"SSH-2.0-x\r\n",
    "traversal": b"GET /static/..%2f..%2fetc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "twenty in one": (INGEST + HOST + LENGTH_4 + b"\r\nabcd") * 20,
    "a hundred usages in one": (USAGE + HOST + b"\r\n") * 100,
    "all ways in one": (
        INGEST + HOST + LENGTH_4 + b"\r\nabcd" + NEXT.replace(CLOSE, b"") + USAGE + HOST + b"\r\n"
        + OTHER + HOST + LENGTH_4 + b"\r\nabcd" + INGEST + HOST + LENGTH_4 + b"\r\nabcd"
    ),
    "version 0.9": b"GET /health/live\r\n",
}  # fmt: skip

PATHS = {
    "lower case": (b"POST", b"post"),
    "two blanks in the line": (b" HTTP", b"  HTTP"),
    "tab in the line": (b" HTTP", b"\tHTTP"),
    "line end first": (b"POST", b"\r\nPOST"),
    "blank first": (b"POST", b" POST"),
    "query": (b" HTTP", b"?tenantId=a HTTP"),
    "query with a wrong tenant": (b" HTTP", b"?tenantId= HTTP"),
    "fragment": (b" HTTP", b"#a HTTP"),
    "absolute form": (b"POST /", b"POST http://x/"),
    "percent-encoded path": (b"/v1", b"/%76%31"),
    "dotted path": (b"/v1/", b"/v1/./"),
    "slash at the end": (b" HTTP", b"/ HTTP"),
    "all line ends bare": (b"\r\n", b"\n"),
}
"""What is changed in the request line: (from, to)."""


def corpus() -> dict[str, bytes]:
    """Every case by name."""
    cases: dict[str, bytes] = {}
    for target, line in (("ingest", INGEST), ("other", OTHER)):
        for name, rest in FRAMING.items():
            cases[f"{target}: {name}"] = line + HOST + rest + NEXT
        for name, (version, host) in LINES.items():
            changed = line if version == b"%b" else line.replace(b"1.1", version)
            cases[f"{target}: {name}"] = changed + host + LENGTH_4 + b"\r\nabcd" + NEXT
        for name, (found, put) in PATHS.items():
            head = (line + HOST + LENGTH_4).replace(found, put)
            end = b"\n" if found == b"\r\n" else b"\r\n"
            cases[f"{target}: {name}"] = head + end + b"abcd" + NEXT
    for name, data in ALONE.items():
        cases[name] = data + NEXT
    return cases
