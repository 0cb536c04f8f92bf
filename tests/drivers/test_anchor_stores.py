"""Where anchors are kept: a file, a web address, an object store of our own that checks every signature."""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from engine.drivers import anchor_stores
from engine.drivers.anchor_stores import Bucket, BucketAnchors, FileAnchors, WebAnchors
from engine.drivers.httpx_wire import HttpxWire
from engine.drivers.s3_signature import Credentials, signed_headers
from engine.ports import AnchorFailed

DOCUMENTED = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
"""The keys, requests and signatures of Amazon's own page about signing."""
HOST = "https://examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("method", "url", "headers", "body", "signature"),
    [
        (
            "GET",
            f"{HOST}/test.txt",
            {"Range": "bytes=0-9"},
            b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            f"{HOST}/test%24file.text",
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET",
            f"{HOST}/?lifecycle",
            {},
            b"",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET",
            f"{HOST}/?max-keys=2&prefix=J",
            {},
            b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
    ids=["get", "put", "lifecycle", "list"],
)
def test_signatures_are_those_of_amazons_own_examples(
    method: str, url: str, headers: dict[str, str], body: bytes, signature: str
) -> None:
    signed = signed_headers(
        method, url, headers, body, DOCUMENTED, region="us-east-1", at="20130524T000000Z"
    )
    assert signed["authorization"].endswith(f"Signature={signature}")
    assert DOCUMENTED.secret_access_key not in repr((DOCUMENTED, signed))


class ObjectStore(ThreadingHTTPServer):
    """A bucket named `kept`: PUT, GET and ListObjectsV2, with signatures recomputed here in another way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.objects: dict[str, bytes] = {}
        self.page = 3
        self.status = 200
        self.refused: list[str] = []
        self.posted: list[bytes] = []
        self.token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Requests(BaseHTTPRequestHandler):
    server: ObjectStore

    def log_message(self, *_: object) -> None:
        return

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def is_right(self, body: bytes) -> bool:
        """The signature, from the request as it came."""
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=the-id/(\d{8})/eu-test-1/s3/aws4_request,"
            r"SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})",
            self.headers["authorization"] or "",
        )
        if found is None or self.headers.get("x-amz-security-token") != self.server.token:
            return False
        day, names, signature = found.groups()
        parts = urlsplit(self.path)
        query = sorted(
            f"{quote(name, safe='')}={quote(value, safe='')}"
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
        )
        lines = [self.command, parts.path, "&".join(query)]
        lines += [f"{name}:{self.headers[name]}" for name in names.split(";")]
        lines += ["", names, sha256(body).hexdigest()]
        digest = sha256("\n".join(lines).encode()).hexdigest()
        scope = f"{day}/eu-test-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{self.headers['x-amz-date']}\n{scope}\n{digest}"
        key = b"AWS4the-secret"
        for part in (day, "eu-test-1", "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), sha256).digest()
        return hmac.new(key, text.encode(), sha256).hexdigest() == signature

    def do_POST(self) -> None:
        self.server.posted.append(self.body())
        self.answer(self.server.status)

    def do_PUT(self) -> None:
        body = self.body()
        if self.server.status != 200:
            self.answer(self.server.status, b"<Error><Code>SlowDown</Code></Error>")
        elif not self.is_right(body):
            self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        else:
            self.server.objects[unquote(self.path).removeprefix("/kept/")] = body
            self.answer(200)

    def do_GET(self) -> None:
        if self.path == "/anchors":
            self.answer(200, b"\n".join(self.server.posted))
            return
        if not self.is_right(b""):
            self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
            return
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix("/kept/")
        if key:
            self.answer(200, self.server.objects[key])
            return
        asked = parse_qs(parts.query, keep_blank_values=True)
        start = int(asked.get("continuation-token", ["0"])[0].removeprefix("n="))
        keys = [k for k in sorted(self.server.objects) if k.startswith(asked["prefix"][0])]
        page = keys[start : start + self.server.page]
        text = "".join(f"<Contents><Key>{escape(k)}</Key></Contents>" for k in page)
        if start + self.server.page < len(keys):
            text += f"<NextContinuationToken>n={start + self.server.page}</NextContinuationToken>"
        self.answer(200, f"<ListBucketResult>{text}</ListBucketResult>".encode())


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


def bucket(
    store: ObjectStore, place: str = "s3://kept/logs/eu", *, secret: str = "the-secret"
) -> BucketAnchors:
    credentials = Credentials("the-id", secret, store.token)
    reached = Bucket(credentials, "eu-test-1", store.url, lambda: "20261024T100000Z")
    return BucketAnchors(place, reached, HttpxWire())


async def test_anchors_in_a_bucket_are_objects_of_their_own_and_are_read_back_in_order() -> None:
    with object_store() as store:
        for place in ("s3://kept/logs/eu", "s3://kept", "s3://kept/a b'c/"):
            store.objects.clear()
            for number in (2, 1, 3, 10, 7):
                await bucket(store, place).put(b"%d" % number, f"id/0000000001-{number:020d}")
            assert await bucket(store, place).read() == [b"1", b"2", b"3", b"7", b"10"]
            start = place.removeprefix("s3://kept").strip("/")
            assert all(key.startswith(start) for key in store.objects)


async def test_a_temporary_keys_token_is_sent_and_signed() -> None:
    with object_store() as store:
        store.token = "a/session+token=="
        await bucket(store).put(b"1", "id/1")
        assert list(store.objects.values()) == [b"1"]


async def test_of_a_long_history_the_newest_and_some_between_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchor_stores, "OBJECTS_READ_MAX", 8)
    monkeypatch.setattr(anchor_stores, "_NEWEST_OF", 2)
    with object_store() as store:
        store.page = 7
        store.objects = {f"logs/eu/id/{n:03d}.json": b"%d" % n for n in range(50)}
        store.objects["logs/eu/other.txt"] = b"no"
        read = [int(line) for line in await bucket(store).read()]
    assert read[-4:] == [46, 47, 48, 49]
    assert len(read) <= 8
    assert read == sorted(read)


async def test_each_logs_newest_anchor_is_read_whatever_other_logs_are_anchored_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchor_stores, "OBJECTS_READ_MAX", 8)
    with object_store() as store:
        store.page = 50
        for log in ("a", "b", "c"):
            store.objects |= {
                f"logs/eu/{log}/{n:03d}.json": f"{log}{n}".encode() for n in range(30)
            }
        read = await bucket(store).read()
        assert {b"a29", b"b29", b"c29"} <= set(read)
        assert len(read) <= 9
        alone = await bucket(store, "s3://kept/logs/eu/b").read()
        assert (alone[-1], {line[:1] for line in alone}) == (b"b29", {b"b"})
        monkeypatch.setattr(anchor_stores, "OBJECTS_READ_MAX", 2)
        with pytest.raises(AnchorFailed, match="anchors of 3 logs"):
            await bucket(store).read()


async def test_a_bucket_that_is_too_large_to_list_is_refused_and_not_read_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchor_stores, "PAGES_MAX", 2)
    with object_store() as store:
        store.objects = {f"logs/eu/id/{n:03d}.json": b"%d" % n for n in range(7)}
        with pytest.raises(AnchorFailed, match="more objects than 6"):
            await bucket(store).read()
        del store.objects["logs/eu/id/000.json"]
        assert len(await bucket(store).read()) == 6


async def test_what_a_bucket_refuses_is_said_without_a_secret() -> None:
    with object_store() as store:
        with pytest.raises(AnchorFailed, match=r"403 \(SignatureDoesNotMatch\)") as refused:
            await bucket(store, secret="another-secret").put(b"1", "id/1")
        assert "secret" not in str(refused.value)
        store.status = 503
        with pytest.raises(AnchorFailed, match=r"503 \(SlowDown\)"):
            await bucket(store).put(b"1", "id/1")
    with pytest.raises(AnchorFailed, match="s3://kept/logs/eu can't be reached"):
        await bucket(store).put(b"1", "id/1")


async def test_a_webhook_gets_each_anchor_and_gives_them_back() -> None:
    with object_store() as store:
        anchors = WebAnchors(f"{store.url}/anchors", HttpxWire())
        await anchors.put(b'{"a":1}', "id/1")
        await anchors.put(b'{"a":2}', "id/2")
        assert await anchors.read() == [b'{"a":1}', b'{"a":2}']
        store.status = 500
        with pytest.raises(AnchorFailed, match="answers POST with 500"):
            await anchors.put(b"3", "id/3")


async def test_a_files_lines_are_appended_for_the_owner_alone(tmp_path: Path) -> None:
    anchors = FileAnchors(tmp_path / "anchors.jsonl")
    await anchors.put(b"1", "a")
    await anchors.put(b"2", "b")
    assert (tmp_path / "anchors.jsonl").read_bytes() == b"1\n2\n"
    assert (tmp_path / "anchors.jsonl").stat().st_mode & 0o777 == 0o600
    assert await anchors.read() == [b"1", b"2"]


async def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    anchors = FileAnchors(tmp_path / "anchors.jsonl")
    (tmp_path / "anchors.jsonl").write_bytes(b"1\ntorn")
    await anchors.put(b"2", "b")
    assert await anchors.read() == [b"1", b"torn", b"2"]


async def test_a_file_that_cannot_be_written_or_read_is_a_failure_that_names_it(
    tmp_path: Path,
) -> None:
    anchors = FileAnchors(tmp_path / "not" / "there")
    with pytest.raises(AnchorFailed, match="can't be written: No such file"):
        await anchors.put(b"1", "a")
    with pytest.raises(AnchorFailed, match="can't be read: No such file"):
        await anchors.read()
    (tmp_path / "large").write_bytes(b"123456")
    large = FileAnchors(tmp_path / "large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchor_stores, "FILE_BYTES_MAX", 5)
        with pytest.raises(AnchorFailed, match="larger than 5"):
            await large.read()
