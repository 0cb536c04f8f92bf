/**
 * What is sent for an event: made once at `track`, whole, under a key of its own.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { EventEncoder, eventOf } from "../dist/esm/event.js";
import { keySource } from "../dist/esm/keys.js";
import { CALL, clientOf, FakeMeter } from "./support/fake.mjs";

const NOW_MS = Date.UTC(2026, 0, 31, 12, 0, 0, 5);
const encoder = () => new EventEncoder("acme", undefined, () => NOW_MS);

test("an event has all of its fields, and the time of the call where it has none", () => {
  const event = { ...CALL, quantity: "0.10", resourceId: 'r"1', meta: { grüße: ["ß", { deep: "\u2028" }] } };
  const { line, bytes, key } = encoder().encode(event, "key-1", true);
  assert.equal(bytes, Buffer.byteLength(line));
  assert.equal(key, "key-1");
  assert.match(line, /"quantity":0\.10,/, "digits as given");
  assert.deepEqual(JSON.parse(line), {
    tenantId: "acme",
    source: "sdk",
    metric: "calls",
    customerRef: "cora",
    quantity: 0.1,
    resourceId: 'r"1',
    ts: "2026-01-31T12:00:00.005Z",
    meta: { grüße: ["ß", { deep: "\u2028" }] },
    idempotencyKey: "key-1",
  });
});

test("a time is taken as a Date, as milliseconds, as text; not without an offset", () => {
  const tsOf = (ts) => eventOf(encoder().encode({ ...CALL, ts }, "k", true)).ts;
  assert.equal(tsOf(new Date(NOW_MS)), "2026-01-31T12:00:00.005Z");
  assert.equal(tsOf(NOW_MS), "2026-01-31T12:00:00.005Z");
  assert.equal(tsOf("2026-01-31t12:00:00.123456789+02:00"), "2026-01-31t12:00:00.123456789+02:00");
  for (const ts of ["2026-01-31", "2026-01-31T12:00:00", "", 'now"', NaN, new Date("?"), {}, 10n, null, 1e99]) {
    assert.throws(() => tsOf(ts), /ts must be/, String(ts));
  }
});

test("names have their bounds in characters, not in units", () => {
  const encode = (fields) => encoder().encode({ ...CALL, ...fields }, "k", false);
  encode({ metric: "m".repeat(100), customerRef: "😀".repeat(255), resourceId: "r".repeat(255) });
  for (const fields of [
    ...[{ metric: "m".repeat(101) }, { metric: "" }, { metric: 7 }, { customerRef: undefined }, { customerRef: "" }],
    ...[{ customerRef: "😀".repeat(256) }, { resourceId: "" }, { resourceId: null }, { customerRef: "a\ud83d" }],
  ]) {
    assert.throws(() => encode(fields), /must|holds/, JSON.stringify(fields));
  }
});

test("meta that JSON can't hold, that is no object, or nests too deep, is refused", () => {
  const nested = (levels) => JSON.parse('{"a":'.repeat(levels - 1) + '{"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\"{{{":1}' + "}".repeat(levels - 1));
  const encode = (meta) => encoder().encode({ ...CALL, meta }, "k", false);
  const circle = {};
  circle.circle = circle;
  encode({ none: undefined });
  encode(nested(28));
  for (const meta of [circle, { big: 1n }, [], "text", null, { toJSON: () => 5 }, nested(29)]) {
    assert.throws(() => encode(meta), /meta must/);
  }
});

test("a change of meta after the call changes nothing", async () => {
  const meter = new FakeMeter();
  const { client } = clientOf(meter);
  const meta = { region: "eu" };
  void client.track({ ...CALL, meta });
  meta.region = "us";
  await client.close();
  assert.equal(meter.requests[0].events[0].meta.region, "eu");
});

test("keys of many clients and calls are all different", () => {
  const keys = new Set();
  for (let client = 0; client < 1000; client += 1) {
    const next = keySource();
    for (let call = 0; call < 100; call += 1) keys.add(next());
  }
  assert.equal(keys.size, 100_000);
  for (const key of keys) assert.match(key, /^n[\w-]{16}-[0-9a-z]+$/);
});

test("an own key goes without a time of the call, so that a second call is the same event", async () => {
  const meter = new FakeMeter();
  const { client } = clientOf(meter);
  await client.track({ ...CALL, idempotencyKey: "order-1" });
  await client.track(CALL);
  await client.close();
  const [own, made] = meter.requests[0].events;
  assert.equal(own.ts, undefined);
  assert.ok(Math.abs(Date.parse(made.ts) - Date.now()) < 60_000);
});
