"""Erasure and retention over HTTP, and their commands' ways of saying no."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.actors import event_scan
from engine.core.periods import first_whole_bucket
from engine.core.records import PeriodClosing, RecordType, SettingsChange, decode_control
from engine.core.times import DAY_US, format_instant, parse_instant
from gateway.cli.main import main
from gateway.data_directory import DataDirectory
from gateway.system import SystemClock
from tests.helpers.keeping import HOUR_US
from tests.helpers.served import ADMIN_KEY, Served, bearer, served
from tests.helpers.server import command
from wal.archive import name_of
from wal.lmdb_log import LmdbLog


def event(customer: str, key: str, quantity: int = 3, **more: object) -> dict[str, object]:
    return {
        "tenantId": "acme",
        "metric": "calls",
        "customerRef": customer,
        "quantity": quantity,
        "idempotencyKey": key,
        **more,
    }


async def completed(server: Served, erasure_id: str) -> None:
    with trio.fail_after(60):
        while True:
            response = await server.client.get(f"/v1/admin/erasures/{erasure_id}")
            assert response.status_code == 200, response.text
            if response.json()["status"] == "completed":
                return
            await trio.sleep(0.001)


async def test_a_deleted_customer_is_gone_from_every_answer_and_its_usage_is_not() -> None:
    async with served() as server:
        await server.client.put(
            "/v1/customers/anna", json={"tenantId": "acme", "stripeCustomerId": "cus_1"}
        )
        await server.ingest(event("anna", "a", meta={"who": "anna"}), event("bob", "b"))
        response = await server.client.delete("/v1/customers/anna", params={"tenantId": "acme"})
        assert response.status_code == 202, response.text
        body = response.json()
        assert (body["status"], body["customers"]) == ("processing", 1)
        await completed(server, body["erasureId"])
        for path in ("/v1/customers", "/v1/events", "/v1/adjustments"):
            found = await server.client.get(path, params={"tenantId": "acme"})
            assert found.status_code == 200
            assert "anna" not in found.text, path
            assert "cus_1" not in found.text, path
        usage = await server.client.get(
            "/v1/usage/current", params={"tenantId": "acme", "customerRef": body["pseudonym"]}
        )
        assert usage.json()["metrics"][0]["current"] == 3
        again = await server.client.delete("/v1/customers/anna", params={"tenantId": "acme"})
        assert again.status_code == 404
        retried = await server.ingest(event("anna", "a", meta={"who": "anna"}))
        assert retried["duplicates"] == 1
        other = await server.client.put(
            "/v1/customers/zoe", json={"tenantId": "umbra", "stripeCustomerId": "cus_1"}
        )
        assert other.status_code == 201, "an erased customer owns no Stripe customer"


async def test_an_erasure_between_two_pages_of_customers_hides_none_of_the_others() -> None:
    async with served() as server:
        for name in ("anna", "bob", "eve", "zoe"):
            await server.client.put(f"/v1/customers/{name}", json={"tenantId": "acme"})
        await server.ingest(event("anna", "a"))
        params: dict[str, str | int] = {"tenantId": "acme", "limit": 2}
        first = (await server.client.get("/v1/customers", params=params)).json()
        response = await server.client.delete("/v1/customers/anna", params={"tenantId": "acme"})
        await completed(server, response.json()["erasureId"])
        params["cursor"] = first["nextCursor"]
        second = (await server.client.get("/v1/customers", params=params)).json()
        seen = [one["customerRef"] for one in first["customers"] + second["customers"]]
        assert seen == ["anna", "bob", "eve", "zoe"]


async def test_a_departing_tenants_customers_are_erased_at_once() -> None:
    async with served() as server:
        await server.ingest(event("anna", "a"), event("bob", "b"))
        await server.ingest(event("anna", "a") | {"tenantId": "umbra"})
        response = await server.client.post(
            "/v1/admin/erasures", json={"tenantId": "acme", "all": True}
        )
        assert (response.status_code, response.json()["customers"]) == (202, 2)
        await completed(server, response.json()["erasureId"])
        listed = await server.client.get("/v1/events", params={"tenantId": "acme"})
        names = {one["customerRef"] for one in listed.json()["events"]}
        assert len(names) == 2
        assert not names & {"anna", "bob"}
        kept = await server.client.get("/v1/events", params={"tenantId": "umbra"})
        assert [one["customerRef"] for one in kept.json()["events"]] == ["anna"]


@pytest.mark.parametrize("body", [{}, {"all": True, "customerRef": "anna"}])
async def test_an_erasure_is_of_one_customer_or_of_all(body: dict[str, object]) -> None:
    async with served() as server:
        response = await server.client.post("/v1/admin/erasures", json={"tenantId": "acme"} | body)
        assert response.status_code == 400


async def test_an_open_import_holds_an_erasure_up() -> None:
    async with served() as server:
        await server.ingest(event("anna", "a"))
        await server.client.post("/v1/events/imports", json={"tenantId": "acme"})
        response = await server.client.delete("/v1/customers/anna", params={"tenantId": "acme"})
        assert response.status_code == 409
        assert "under way" in response.json()["detail"]


async def test_retention_says_what_it_would_drop_drops_it_and_refuses_what_is_older() -> None:
    async with served() as server:
        await server.ingest(event("anna", "old"))
        counted = format_instant(server.clock.us + 1_000_000)
        server.clock.us += 2_000_000
        await server.ingest(event("anna", "old, too"))
        server.clock.us += 100 * DAY_US
        await server.gateway.meter.started.closer.close_due()
        await server.ingest(event("anna", "new", 4))
        unset = await server.client.post("/v1/admin/retention", json={})
        assert unset.status_code == 400
        first = await server.client.post("/v1/admin/retention", json={"days": 60})
        assert (first.json()["events"], first.json()["archives"]) == (2, [])
        done = await server.client.post("/v1/admin/retention", json={"days": 60, "dryRun": False})
        assert done.json()["events"] == 2
        assert len(done.json()["archives"]) == 1
        horizon = done.json()["horizon"]
        old = format_instant(server.clock.us - 90 * DAY_US)
        refused = await server.ingest(event("anna", "older", ts=old))
        assert horizon in refused["results"][0]["error"]
        listed = await server.client.get("/v1/events", params={"tenantId": "acme"})
        assert [one["id"] for one in listed.json()["events"]] == ["new"]
        assert (listed.json()["total"], listed.json()["droppedBefore"]) == (1, horizon)
        for since, status in ((horizon, 200), (old, 410)):
            replay = await server.client.post(
                "/v1/replay", json={"tenantId": "acme", "since": since}
            )
            assert replay.status_code == status, replay.text
        then = await server.client.get(
            "/v1/usage/current", params={"tenantId": "acme", "customerRef": "anna", "asOf": counted}
        )
        assert then.status_code == 410


async def test_a_history_never_shows_a_bucket_of_which_retention_dropped_a_part() -> None:
    async with served() as server:
        clock = server.clock
        clock.us += first_whole_bucket("month", clock.us) - clock.us + DAY_US // 2
        await server.ingest(event("anna", "dropped"))
        clock.us += 20 * DAY_US
        await server.ingest(event("anna", "kept", 5))
        clock.us += 70 * DAY_US + DAY_US // 3
        await server.gateway.meter.started.closer.close_due()
        done = await server.client.post("/v1/admin/retention", json={"days": 75, "dryRun": False})
        assert done.json()["events"] == 1, "of the month that holds the horizon one of two"
        horizon = done.json()["horizon"]
        asked = {"tenantId": "acme", "metric": "calls", "since": horizon}
        for interval in ("minute", "hour", "day", "month"):
            params = asked | {"interval": interval, "until": format_instant(clock.us - 40 * DAY_US)}
            if interval == "minute":
                params["until"] = format_instant(parse_instant(horizon) + DAY_US // 24)
            refused = await server.client.get("/v1/usage/history", params=params)
            assert refused.status_code == 410, (interval, refused.text)
            params["since"] = refused.json()["detail"].rpartition(" ")[2]
            found = await server.client.get("/v1/usage/history", params=params)
            assert found.status_code == 200, (interval, found.text)
            assert found.json()["timeRange"]["start"] == params["since"], "the first whole bucket"
            told = parse_instant(params["since"]) - parse_instant(horizon)
            assert 0 < told <= 31 * DAY_US


async def test_a_listing_neither_shows_nor_counts_what_retention_dropped_and_says_so() -> None:
    async with served() as server:
        for number in range(5):
            await server.ingest(*[event("anna", f"old-{number}-{at}") for at in range(3)])
        server.clock.us += 100 * DAY_US
        await server.gateway.meter.started.closer.close_due()
        await server.ingest(event("anna", "new-1"), event("bob", "new-2"))

        async def listed(**query: str | int) -> dict[str, Any]:
            answer = await server.client.get("/v1/events", params={"tenantId": "acme", **query})
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            found["ids"] = [one["id"] for one in found.pop("events")]
            return found

        before = await listed(sortDir="asc", limit=2)
        assert (before["total"], "droppedBefore" in before) == (17, False)
        done = await server.client.post("/v1/admin/retention", json={"days": 60, "dryRun": False})
        assert done.json()["events"] == 15
        horizon = done.json()["horizon"]
        for query in (
            {"limit": 2},
            {"sort": "customerRef"},
            {"cursor": before["nextCursor"], "limit": 2},
        ):
            page = await listed(sortDir="asc", **query)
            assert page == {"total": 2, "droppedBefore": horizon, "ids": ["new-1", "new-2"]}, query
        assert await listed(startTime=horizon, customerRef="bob") == {"total": 1, "ids": ["new-2"]}
        for query in ({"format": "csv"}, {"format": "jsonl"}, {"format": "jsonl", "after": 0}):
            for start, said in ((None, horizon), (horizon, None)):
                params = {"tenantId": "acme", **query} | ({"startTime": start} if start else {})
                answer = await server.client.get("/v1/events", params=params)
                assert answer.headers.get("x-stripemeter-dropped-before") == said, params
                assert answer.text.count("new-") == 2
        end = server.gateway.meter.started.writer.published_sequence - 3
        params = {"tenantId": "acme", "format": "jsonl", "after": end}
        answer = await server.client.get("/v1/events", params=params)
        assert "x-stripemeter-dropped-before" not in answer.headers, "nothing after it was dropped"


async def test_an_export_from_which_retention_takes_events_while_it_is_sent_has_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_scan, "PAGE_BYTES", 1)
    async with served() as server:
        for number in range(5):
            await server.ingest(event("anna", f"old-{number}"))
        server.clock.us += 100 * DAY_US
        gateway = server.gateway
        await gateway.meter.started.closer.close_due()
        await server.ingest(event("anna", "new"))
        meter, pages = gateway.meter, 0
        run_blocking = meter.run_blocking

        async def retention_runs(work: Callable[[], Any]) -> Any:
            nonlocal pages
            pages += 1
            if pages == 3:
                await meter.started.retention.apply(60, "test")
            return await run_blocking(work)

        meter.run_blocking = retention_runs  # type: ignore[method-assign, assignment]
        params = {"tenantId": "acme", "format": "jsonl"}
        with pytest.raises(AssertionError):  # httpx without a network: an answer without an end
            await server.client.get("/v1/events", params=params)
        assert (gateway.streams.cut_off, pages > 3) == (1, True)
        again = await server.client.get("/v1/events", params=params)
        assert again.text.count("idempotencyKey") == 1
        assert "x-stripemeter-dropped-before" in again.headers


def test_a_command_on_a_stopped_directory_leaves_the_servers_window_and_policy_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    place = ["--tenant", "acme", "--data-dir", str(data)]
    ends = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last_hour = (ends - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            f'{{"metric":"calls","customerRef":"{name}","quantity":1,"ts":"{last_hour}"}}\n'
            for name in ("anna", "bob")
        )
    )
    monkeypatch.setenv("STRIPEMETER_LATENESS_HOURS", "2000")
    monkeypatch.setenv("STRIPEMETER_LATE_POLICY", "auto")
    assert main(["import", str(rows), *place]) == 0
    # A shell without the service's environment; 0 hours would close the month that is over.
    monkeypatch.setenv("STRIPEMETER_LATENESS_HOURS", "0")
    monkeypatch.delenv("STRIPEMETER_LATE_POLICY")
    assert main(["import", str(rows), *place]) == 0
    assert main(["import", str(rows), *place, "--dry-run"]) == 0
    assert main(["erase", *place, "--customer", "anna", "--yes"]) == 0
    assert main(["retention", "--days", "400", "--data-dir", str(data)]) == 0
    log = LmdbLog(DataDirectory(data).log_path, read_only=True)
    records = [
        decode_control(record.envelope.record_type, record.parts[0].data)
        for record in log.read(0, bytes_max=1 << 20)
        if record.envelope.record_type != RecordType.EVENTS
    ]
    log.close()
    settings = [one for one in records if isinstance(one, SettingsChange)]
    assert [(one.lateness_us // HOUR_US, one.late_policy) for one in settings] == [(2000, "auto")]
    closings = [one for one in records if isinstance(one, PeriodClosing)]
    assert all(one.lateness_us // HOUR_US == 2000 for one in closings)


def test_an_erasure_removes_an_archive_that_a_kill_left_half_written(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    place = ["--tenant", "acme", "--data-dir", str(data.path)]
    rows = tmp_path / "rows.jsonl"
    row = event("anna", "a", ts=format_instant(SystemClock().now_us() - DAY_US))
    rows.write_text(json.dumps(row))
    assert main(["import", str(rows), *place]) == 0
    data.archives_path.mkdir()
    half = data.archives_path / (name_of(0, 7) + ".unfinished")
    half.write_bytes(b"of anna")
    assert main(["erase", *place, "--customer", "anna", "--yes"]) == 0
    assert not half.exists()


def test_a_restore_goes_where_a_link_leads_and_says_what_to_do_with_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, backup = tmp_path / "rows.jsonl", tmp_path / "backup"
    row = event("anna", "a", ts=format_instant(SystemClock().now_us() - DAY_US))
    rows.write_text(json.dumps(row))
    assert (
        main(["import", str(rows), "--tenant", "acme", "--data-dir", str(tmp_path / "data")]) == 0
    )
    assert main(["backup", str(backup), "--data-dir", str(tmp_path / "data")]) == 0
    link, real = tmp_path / "link", tmp_path / "elsewhere" / "real"
    real.mkdir(parents=True)
    link.symlink_to(real)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_mount", lambda path: path == real)
        assert main(["restore", str(backup), "--data-dir", str(link)]) == 1
        assert f"restore into a directory in it ({real / 'restored'})" in capsys.readouterr().err
    assert main(["restore", str(backup), "--data-dir", str(link)]) == 0
    assert link.is_symlink()
    assert (real / "log" / "data.mdb").exists()


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for arguments, status, words in (
        (["erase", "--tenant", "acme"], 2, "--customer"),
        (["erase", "--tenant", "acme", "--all", "--yes"], 1, "there is no log"),
        (["retention"], 2, "--days"),
        (["retention", "--days", "30"], 1, "there is no log"),
        (["backup", str(tmp_path / "b")], 1, "there is no log"),
        (["restore", str(tmp_path / "b")], 1, "not a backup"),
        (["compact"], 1, "there is no log"),
    ):
        done = command([*arguments, "--data-dir", str(directory)], directory)
        assert done.returncode == status, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dry_run", [True, False])
async def test_retention_is_not_for_one_tenants_key_as_it_drops_and_counts_everybodys_events(
    *, dry_run: bool
) -> None:
    async with served(auth="required") as server:
        admin = bearer(ADMIN_KEY)
        old = event("anna", "old") | {"tenantId": "umbra"}
        await server.ingest(old, headers=admin)
        await server.ingest(old | {"idempotencyKey": "old, too"}, headers=admin)
        server.clock.us += 100 * DAY_US
        await server.gateway.meter.started.closer.close_due()
        key = await server.key("acme", "project:*", "admin")
        asked = {"days": 60, "dryRun": dry_run}
        refused = await server.client.post("/v1/admin/retention", json=asked, headers=bearer(key))
        assert refused.status_code == 403, refused.text
        assert "every tenant" in refused.json()["detail"]
        kept = await server.client.get("/v1/events", params={"tenantId": "umbra"}, headers=admin)
        assert kept.json()["total"] == 2
        done = await server.client.post("/v1/admin/retention", json=asked, headers=admin)
        assert done.status_code == 200, done.text
