"""`parity`, `parity verify` and `check --anchor` on a real directory: damage in log or certificate is found, and where.

The log is filled by a real server that pushes to its own simulator and anchors to a file; then it is changed as an
attacker with the whole disk would: whole records, checksums made to match, hashes chained anew.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
from crc32c import crc32c

from engine.witness.canonical import Signer, parse
from tests.crash.test_kill import SMALL
from tests.helpers.http_client import Answer, Client
from tests.helpers.server import STOCK, command, running, server_environment
from wal.anchor import ANCHOR_NAME
from wal.lmdb_log import LmdbLog

pytestmark = [pytest.mark.slow, pytest.mark.lmdb]
MONTH = time.strftime("%Y-%m", time.gmtime())


class Filled(NamedTuple):
    """A stopped server's directory, the certificate it gave, and its anchors."""

    directory: Path
    certificate: Path
    anchors: Path


def events(start: int, count: int) -> dict[str, Any]:
    return {
        "events": [
            {
                "tenantId": "acme",
                "metric": "calls",
                "customerRef": f"cus_{number % 3}",
                "quantity": number,
                "idempotencyKey": f"k{number}",
            }
            for number in range(start, start + count)
        ]
    }


def post(client: Client, path: str, body: dict[str, Any]) -> Answer:
    return client.request("POST", path, json.dumps(body).encode())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Made once; every test changes a copy."""
    place = tmp_path_factory.mktemp("parity")
    directory, anchors = place / "data", place / "anchors.jsonl"
    environment = SMALL | {
        "STRIPEMETER_SIMULATOR": "on",
        "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
        "STRIPEMETER_ANCHOR": str(anchors),
        "STRIPEMETER_ANCHOR_INTERVAL_SECONDS": "0.1",
    }
    with running(directory, environment=environment) as server:
        with server.client() as client:
            body = {"tenantId": "acme", "metric": "calls", "meterEventName": "calls"}
            assert post(client, "/v1/mappings", body).status == 201
            for start in range(0, 60, 6):
                assert post(client, "/v1/events/ingest", events(start, 6)).status == 200
                time.sleep(0.12)
            assert post(client, "/v1/pushes/flush", {"tenantId": "acme"}).status == 200
            found = client.get(f"/v1/parity/{MONTH}?tenantId=acme&maxAgeSeconds=0")
            assert found.status == 200
            certificate = place / "parity.json"
            certificate.write_bytes(found.body)
            assert post(client, "/v1/events/ingest", events(60, 3)).status == 200
            # The last anchor covers all there is: nothing is pushed any more.
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                post(client, "/v1/pushes/flush", {"tenantId": "acme"})
                time.sleep(0.3)
                ready = json.loads(client.get("/health/ready").body)["checks"]
                if (
                    ready["anchors"]["facts"]["position"]
                    == ready["log"]["facts"]["nextSequence"] - 1
                ):
                    break
            assert ready["anchors"]["status"] == "ok"
            assert b"anchors_written_total" in client.get("/metrics").body
        assert server.stop() == 0
    assert len(anchors.read_bytes().splitlines()) >= 5
    return Filled(directory, certificate, anchors)


@pytest.fixture
def place(filled: Filled, tmp_path: Path) -> Filled:
    shutil.copytree(filled.directory, tmp_path / "data")
    shutil.copy(filled.certificate, tmp_path / "parity.json")
    shutil.copy(filled.anchors, tmp_path / "anchors.jsonl")
    return Filled(tmp_path / "data", tmp_path / "parity.json", tmp_path / "anchors.jsonl")


def verify(place: Filled, *more: str) -> tuple[int, dict[str, Any]]:
    arguments = ["parity", "verify", str(place.certificate), "--log", str(place.directory)]
    done = command([*arguments, "--json", *more], place.directory)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def check(place: Filled, *more: str) -> tuple[int, dict[str, Any]]:
    arguments = ["check", "--data-dir", str(place.directory), "--anchor", str(place.anchors)]
    done = command([*arguments, "--json", *more], place.directory)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


Blobs = dict[int, bytes]


def rewrite(place: Filled, change: Callable[[Blobs], None]) -> None:
    """Change the log's records; the anchor beside it goes, since whoever does this has it too."""
    path = place.directory / "log"
    with (
        lmdb.open(str(path), map_size=1 << 30) as environment,
        environment.begin(write=True) as transaction,
    ):
        blobs = {int.from_bytes(key): bytes(blob) for key, blob in transaction.cursor()}
        before = set(blobs)
        change(blobs)
        for key in before - blobs.keys():
            transaction.delete(key.to_bytes(8))
        for key, blob in blobs.items():
            transaction.put(key.to_bytes(8), blob)
    (path / ANCHOR_NAME).unlink(missing_ok=True)


def chained(blobs: Blobs) -> None:
    """Give every record its checksum and its place in the chain anew, as somebody with time on his hands would."""
    previous = bytes(32)
    for key in sorted(blobs):
        blob = bytearray(blobs[key])
        (parts,) = struct.unpack_from(">H", blob, 6)
        blob[36:68] = previous
        at = 68 + 37 * parts
        for index in range(parts):
            state, length = struct.unpack_from(">BI", blob, at)
            data = bytes(blob[at + 5 : at + 5 + length])
            if state == 0:
                header = 68 + 37 * index
                blob[header + 1 : header + 33] = blake2b(data, digest_size=32).digest()
            at += 5 + length
        previous = blake2b(bytes(blob[: 68 + 37 * parts]), digest_size=32).digest()
        blob[-4:] = struct.pack(">I", crc32c(bytes(blob[:-4])))
        blobs[key] = bytes(blob)


def of_type(blobs: Blobs, record_type: int) -> list[int]:
    return [key for key in sorted(blobs) if blobs[key][5] == record_type]


def test_what_the_server_said_is_what_the_log_says(place: Filled) -> None:
    code, found = verify(place)
    assert (code, found["problems"]) == (0, [])
    assert found["isRecounted"]
    document = parse(place.certificate.read_bytes())
    assert (document["verdict"], len(document["chains"])) == ("green", 3)
    code, report = check(place)
    assert (code, report["problems"]) == (0, [])
    assert report["anchorsHeld"] == len(place.anchors.read_bytes().splitlines())
    shown = command(["parity", "key", "--data-dir", str(place.directory)], place.directory)
    assert shown.stdout.strip() == document["publicKey"]
    code, _report = check(place, "--key", document["publicKey"])
    assert code == 0


def test_a_backup_is_as_good_as_the_directory_and_has_no_key(place: Filled) -> None:
    backup = place.directory.parent / "backup"
    arguments = ["backup", str(backup), "--data-dir", str(place.directory)]
    assert command(arguments, place.directory).returncode == 0
    copied = place._replace(directory=backup)
    code, found = verify(copied)
    assert (code, found["isRecounted"]) == (0, True)
    assert any("key" in note for note in found["notes"])
    key = backup.parent / "key"
    key.write_text("00" * 32 + "\n")
    code, found = verify(copied, "--key", str(key))
    assert [one[0] for one in found["problems"]] == ["publicKey"]


def flip(blobs: Blobs) -> None:
    key = of_type(blobs, 2)[4]
    blob = bytearray(blobs[key])
    blob[-30] ^= 4
    blobs[key] = bytes(blob)


def flip_with_its_checksum(blobs: Blobs) -> None:
    flip(blobs)
    key = of_type(blobs, 2)[4]
    blob = blobs[key][:-4]
    blobs[key] = blob + struct.pack(">I", crc32c(blob))


def drop(blobs: Blobs) -> None:
    del blobs[of_type(blobs, 2)[4]]


def reorder(blobs: Blobs) -> None:
    one, other = of_type(blobs, 2)[4:6]
    blobs[one], blobs[other] = blobs[other], blobs[one]


@pytest.mark.parametrize("change", [flip, flip_with_its_checksum, drop, reorder])
def test_a_changed_log_is_found_and_the_record_named(
    place: Filled, change: Callable[[Blobs], None]
) -> None:
    near: list[int] = []

    def noted(blobs: Blobs) -> None:
        keys = sorted(blobs)
        for key in of_type(blobs, 2)[4:6]:
            # What was lost is noticed at the record after it.
            near.extend(keys[keys.index(key) : keys.index(key) + 2])
        change(blobs)

    rewrite(place, noted)
    code, found = verify(place)
    assert code == 1
    named = [one[0] for one in found["problems"]]
    assert set(named) & {f"log: record {key}" for key in near}, (named, near)
    assert not found["isRecounted"]
    code, report = check(place)
    assert code == 1
    assert {problem["sequence"] for problem in report["problems"]} & set(near)


def test_a_cut_tail_is_found_by_certificate_and_anchors_and_by_nothing_else(place: Filled) -> None:
    ends: list[int] = []

    def cut(blobs: Blobs) -> None:
        for key in sorted(blobs)[-12:]:
            ends.append(key)
            del blobs[key]

    rewrite(place, cut)
    alone = command(["check", "--data-dir", str(place.directory)], place.directory)
    assert alone.returncode == 0, "the log alone looks whole"
    code, report = check(place)
    assert code == 1
    (problem,) = report["problems"]
    assert problem["sequence"] == ends[0]
    assert f"the records after {ends[0] - 1} were cut off" in problem["message"]
    code, found = verify(place)
    assert (code, found["isRecounted"]) == (1, False)
    assert [one[0] for one in found["problems"]] == [f"log: record {ends[0]}"]


def test_a_log_that_was_written_anew_is_found_and_the_place_named(place: Filled) -> None:
    """A quantity is changed, and every hash and checksum after it made to match."""
    changed: list[int] = []

    def change(blobs: Blobs) -> None:
        key = of_type(blobs, 2)[5]
        changed.append(key)
        (micros,) = (struct.pack(">I", 31 * 1_000_000),)
        assert blobs[key].count(b"\xce" + micros) == 1
        blobs[key] = blobs[key].replace(b"\xce" + micros, b"\xce" + struct.pack(">I", 1))
        chained(blobs)

    rewrite(place, change)
    alone = command(["check", "--data-dir", str(place.directory)], place.directory)
    assert alone.returncode == 0, alone.stdout
    code, report = check(place)
    assert code == 1
    (problem,) = report["problems"]
    assert "written anew" in problem["message"]
    positions = [json.loads(line)["position"] for line in place.anchors.read_bytes().splitlines()]
    before = [at for at in positions if at < changed[0]]
    assert report["anchorsHeld"] == len(before) > 0
    assert problem["sequence"] == positions[len(before)]
    code, found = verify(place)
    assert code == 1
    assert any("written anew" in one[1] for one in found["problems"])


def test_a_certificate_made_to_fit_a_forged_log_still_fails_its_key(place: Filled) -> None:
    document = parse(place.certificate.read_bytes())
    bare = {name: one for name, one in document.items() if name not in ("seals", "signature")}
    bare["chains"][0]["counter"]["last"] = "1"
    forged = Signer(bytes(32)).sealed("stripemeter-parity-1", bare)
    place.certificate.write_text(json.dumps(forged, indent=2))
    code, found = verify(place)
    assert code == 1
    where = [one[0] for one in found["problems"]]
    assert where == ["publicKey", "chains[0].counter.last"]


def test_anchors_that_were_changed_or_are_of_another_log_are_named(place: Filled) -> None:
    lines = place.anchors.read_bytes().splitlines()
    other = json.loads(lines[0])
    lines[1] = lines[1].replace(b'"epoch":1', b'"epoch":2')
    place.anchors.write_bytes(b"\n".join(lines))
    code, report = check(place)
    assert code == 1
    assert [p["message"][:9] for p in report["problems"]] == ["anchor 2 "]
    strange = Signer(bytes(32)).signed("stripemeter-anchor-1", other | {"logId": "00" * 16})
    place.anchors.write_text(json.dumps(strange))
    code, report = check(place)
    assert code == 1
    assert "none of the 1 anchors" in report["problems"][0]["message"]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "not a certificate"), (b'{"a":1,"a":2}', "there twice")]
)
def test_a_file_that_is_no_certificate_is_refused_in_one_line(
    place: Filled, content: bytes, reason: str
) -> None:
    place.certificate.write_bytes(content)
    done = command(["parity", "verify", str(place.certificate)], place.directory)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_gets_shows_and_keeps_a_certificate(place: Filled) -> None:
    import subprocess
    import sys

    environment = {"STRIPEMETER_SIMULATOR": "on"}
    with running(place.directory, environment=environment) as server:
        url = f"http://127.0.0.1:{server.port}"

        def parity(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", STOCK, "parity", "--url", url, "--tenant", "acme", *more],
                cwd=place.directory.parent,
                env=server_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        with server.client() as client:
            assert post(client, "/v1/pushes/flush", {"tenantId": "acme"}).status == 200
        shown = parity("-o", "new.json", "--max-age", "0")
        assert shown.returncode == 0, shown.stderr + shown.stdout
        assert "cus_1" in shown.stdout
        assert "green" in shown.stdout
        raw = parity("--json", "--customer", "cus_1")
        assert len(json.loads(raw.stdout)["chains"]) == 1
        refused = command(
            ["parity", "verify", "new.json", "--log", str(place.directory)], place.directory
        )
        assert refused.returncode == 1
        assert "in use by" in refused.stderr
        assert server.stop() == 0
    done = command(["parity", "verify", "new.json", "--log", str(place.directory)], place.directory)
    assert done.returncode == 0, done.stdout
    assert "recounted from the log" in done.stdout
    LmdbLog(place.directory / "log").close()
