/**
 * The client over a meter in memory: what reaches the app's path, what is told, what is sent.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient, StripeMeterError } from "../dist/esm/index.js";
import { answer, CALL, clientOf, fail, FakeMeter } from "./support/fake.mjs";

test("a retry sends the same bytes, and counts once", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.loseAnswer(), fail.status(503), fail.reset(), fail.loseAnswer()];
  const { client, told } = clientOf(meter);
  for (let call = 0; call < 3; call += 1) void client.track(CALL);
  assert.equal(await client.flush(), true);
  assert.equal(new Set(meter.requests.map(({ body }) => body)).size, 1);
  assert.equal(meter.counted.size, 3);
  const { tracked, accepted, duplicates, retries, queued } = client.statistics();
  assert.deepEqual({ tracked, accepted, duplicates, retries, queued }, { tracked: 3, accepted: 0, duplicates: 3, retries: 4, queued: 0 });
  assert.deepEqual(told, []);
  await client.close();
});

test("a 400 is final and told, with its event, status and request", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.status(400, { "x-request-id": "req-1" })];
  const { client, told } = clientOf(meter);
  void client.track({ ...CALL, idempotencyKey: "k1" });
  assert.equal(await client.flush(), true);
  assert.equal(meter.requests.length, 1);
  const [{ error, event }] = told;
  assert.deepEqual([error.kind, error.status, error.requestId, event.idempotencyKey], ["rejected", 400, "req-1", "k1"]);
  assert.equal(client.statistics().rejected, 1);
  await client.close();
});

test("a 200 that is none of the meter's is tried again", async () => {
  const meter = new FakeMeter();
  const pages = ["<html>", "null", "{}", '{"results":[]}', '{"results":[null]}', '{"results":[{"status":"new"}]}'];
  meter.faults = pages.map((page) => () => answer(200, page));
  const { client, told } = clientOf(meter);
  void client.track(CALL);
  assert.equal(await client.flush(), true);
  assert.deepEqual([meter.requests.length, meter.counted.size, told.length], [pages.length + 1, 1, 0]);
  await client.close();
});

test("in buffered mode nothing that is given to track throws", async () => {
  const meter = new FakeMeter();
  const { client, told } = clientOf(meter);
  const trap = Object.defineProperty({ ...CALL }, "quantity", {
    get() {
      throw new Error("a getter of the app");
    },
  });
  const strange = [undefined, null, 5, "text", [], {}, trap, { ...CALL, quantity: NaN }, { ...CALL, meta: { n: 1n } }];
  for (const event of strange) {
    const result = await client.track(event);
    assert.deepEqual([result.status, result.idempotencyKey], ["refused", null]);
  }
  assert.equal((await client.trackBatch([CALL, null, CALL])).failed, 1);
  assert.deepEqual([told.length, told.every(({ error }) => error.kind === "invalid")], [strange.length + 1, true]);
  await client.close();
  assert.deepEqual(await client.trackBatch([CALL]).then(({ failed }) => failed), 1);
  assert.equal((await client.track(CALL)).status, "refused");
  assert.equal(told.at(-1).error.kind, "closed");
  const { tracked, accepted, rejected, dropped } = client.statistics();
  assert.deepEqual({ tracked, accepted, rejected, dropped }, { tracked: 4, accepted: 2, rejected: 10, dropped: 2 });
});

test("an onError that throws or rejects does no harm, and is shown as a warning", async () => {
  const meter = new FakeMeter();
  for (const onError of [() => assert.fail("thrown"), async () => assert.fail("rejected")]) {
    const { client } = clientOf(meter, { onError });
    const warned = once(process, "warning");
    void client.track({ ...CALL, quantity: -1 });
    void client.track(CALL);
    const [warning] = await warned;
    assert.match(warning.message, /onError failed: (thrown|rejected)/);
    assert.equal(await client.close(), true);
  }
  assert.equal(meter.counted.size, 2);
});

test("without an onError a process warning tells, at most one a minute", async () => {
  const warnings = [];
  const hear = (warning) => warnings.push(warning);
  process.on("warning", hear);
  const { client } = clientOf(new FakeMeter(), { onError: undefined });
  for (let call = 0; call < 50; call += 1) void client.track({ ...CALL, quantity: "many" });
  await client.close();
  await sleep(5);
  process.off("warning", hear);
  assert.deepEqual(warnings.map(({ code }) => code), ["STRIPEMETER"]);
  assert.match(warnings[0].message, /plain decimal/);
});

test("the key is in the header and in no error", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.status(401), fail.reset(), fail.reset()];
  const apiKey = "sm_very-secret";
  const { client, told } = clientOf(meter, { mode: "direct", apiKey, attemptsMax: 2 });
  for (let call = 0; call < 2; call += 1) await assert.rejects(client.track(CALL), StripeMeterError);
  assert.equal(meter.requests[0].headers.authorization, `Bearer ${apiKey}`);
  assert.throws(() => createClient({ apiUrl: "http://x", tenantId: "t", apiKey: "with blank" }), (error) => !error.message.includes("with blank"));
  const { inspect } = await import("node:util");
  assert.equal(inspect([told, client], { depth: 9 }).includes("secret"), false);
});

test("options are checked by name", () => {
  const good = { apiUrl: "http://127.0.0.1:3000/", tenantId: "acme" };
  createClient(good);
  const wrong = [
    ...[{ apiUrl: undefined }, { apiUrl: "127.0.0.1:3000" }, { apiUrl: "ftp://x" }, { apiUrl: "http://u:p@x" }, { apiUrl: "http://x?a" }],
    ...[{ tenantId: "" }, { tenantId: 5 }, { tenantId: "t".repeat(256) }, { mode: "fast" }, { batchEventsMax: 0 }, { timeoutMs: 1.5 }],
    ...[{ timeoutMs: 2 ** 31 }, { backpressure: "wait" }, { onError: "log" }, { spool: "dir" }, { spool: { path: "" } }, { spool: { path: "x", sync: "no" } }],
    ...[{ mode: "direct", spool: { path: "x" } }, { retries: 3 }, { customerId: "" }, { fetch: 5 }, { closeMsMax: "5" }],
  ];
  for (const options of wrong) {
    const name = Object.keys(options).at(-1);
    assert.throws(
      () => createClient({ ...good, ...options }),
      (error) => error instanceof StripeMeterError && error.kind === "invalid" && error.message.includes(name),
      JSON.stringify(options),
    );
  }
});

test("the customer of the client is taken where a call names none", async () => {
  const meter = new FakeMeter();
  const { client } = clientOf(meter, { customerId: "bert" });
  void client.track({ metric: "calls", quantity: 1 });
  void client.track(CALL);
  await client.close();
  assert.deepEqual(meter.requests[0].events.map(({ customerRef }) => customerRef), ["bert", "cora"]);
});

test("a signal ends the waiting of every call", async () => {
  const reason = new Error("enough");
  const aborted = () => AbortSignal.abort(reason);
  const direct = clientOf(new FakeMeter(), { mode: "direct" }).client;
  const buffered = clientOf(new FakeMeter()).client;
  void buffered.track(CALL);
  const calls = [
    (options) => direct.track(CALL, options),
    (options) => direct.trackBatch([CALL], options),
    (options) => direct.getUsage("cora", options),
    (options) => direct.getUsageHistory({ metric: "calls", since: "-PT1H" }, options),
    (options) => direct.getProjection({ customerRef: "cora" }, options),
    (options) => direct.getEvents({}, options),
    (options) => buffered.flush(options),
    (options) => buffered.close(options),
  ];
  for (const call of calls) await assert.rejects(call({ signal: aborted() }), (error) => error === reason, String(call));
  await buffered.close();

  const meter = new FakeMeter();
  meter.faults = Array.from({ length: 9 }, () => fail.hang());
  for (const [client, call] of [
    [clientOf(meter, { mode: "direct" }).client, (one, options) => one.track(CALL, options)],
    [clientOf(meter).client, async (one, options) => { void one.track(CALL); return one.flush(options); }],
    [clientOf(meter, { closeMsMax: 100 }).client, async (one, options) => { void one.track(CALL); return one.close(options); }],
  ]) {
    const abort = new AbortController();
    setTimeout(() => abort.abort(reason), 20);
    await assert.rejects(call(client, { signal: abort.signal }), (error) => error === reason);
    void client.close();
  }
});

test("flush waits for what was tracked before it, in order, also when the oldest are dropped meanwhile", async () => {
  const meter = new FakeMeter();
  let open;
  const gate = new Promise((resolve) => (open = resolve));
  meter.faults = [async (events) => { await gate; return meter.take(events); }];
  const { client, told } = clientOf(meter, { batchEventsMax: 1, queueEventsMax: 2 });
  void client.track({ ...CALL, idempotencyKey: "a" });
  const flushed = client.flush();
  await sleep(5);
  for (const idempotencyKey of ["b", "c", "d", "e"]) void client.track({ ...CALL, idempotencyKey });
  assert.equal(await Promise.race([flushed, sleep(20, "waits")]), "waits", "a is on its way still");
  open();
  assert.equal(await flushed, true);
  assert.equal(meter.counted.has("a"), true);
  await client.close();
  assert.deepEqual([...meter.counted.keys()], ["a", "d", "e"]);
  assert.deepEqual(told.map(({ error, event }) => [error.kind, event.idempotencyKey]), [["dropped", "b"], ["dropped", "c"]]);
});

test("the queue is bounded in bytes as well", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.hang()];
  const { client, told } = clientOf(meter, { queueBytesMax: 2000, closeMsMax: 0 });
  for (let call = 0; call < 100; call += 1) void client.track({ ...CALL, meta: { long: "x".repeat(500) } });
  assert.ok(client.statistics().queued <= 3, "at 700 bytes each");
  assert.equal(told.length, 100 - client.statistics().queued);
  await client.close();
  assert.equal(client.statistics().dropped, 100);
});

test("a batch under raise is taken whole or not at all; calls that are blocked are bounded too", async () => {
  const meter = new FakeMeter();
  meter.faults = Array.from({ length: 9 }, () => fail.hang());
  const raising = clientOf(meter, { backpressure: "raise", queueEventsMax: 3, closeMsMax: 0 }).client;
  await raising.trackBatch([CALL, CALL]);
  await assert.rejects(raising.trackBatch([CALL, CALL]), (error) => error.kind === "queue_full" && error.events.length === 2);
  assert.equal(raising.statistics().tracked, 2);
  await raising.trackBatch([CALL]);
  await raising.close();

  const { client, told } = clientOf(meter, { backpressure: "block", queueEventsMax: 3, blockMsMax: 30_000, closeMsMax: 50 });
  void client.track(CALL);
  assert.equal(await client.flush({ timeoutMs: 10 }), false, "one is on its way for good");
  const results = Array.from({ length: 10 }, () => client.track(CALL));
  await sleep(1);
  assert.equal(told.length, 4, "three in the queue, three that wait");
  await client.close();
  assert.equal(told.length, 11, "close ends the waiting");
  assert.deepEqual((await Promise.all(results)).map(({ status }) => status), [...Array(3).fill("queued"), ...Array(7).fill("dropped")]);
});

test("an answer that never comes is given up after its time, and the batch sent again", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.hang()];
  const { client } = clientOf(meter, { timeoutMs: 30 });
  void client.track(CALL);
  assert.equal(await client.flush(), true);
  assert.equal(meter.requests.length, 2);
  await client.close();
});

test("flush tries at once after a long wait, but not again and again", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.reset(), fail.reset(), fail.reset()];
  const { client } = clientOf(meter, { retryMsFirst: 60_000, retryMsMax: 60_000, closeMsMax: 50 });
  void client.track(CALL);
  for (let call = 0; call < 20; call += 1) await client.flush({ timeoutMs: 5 });
  assert.equal(meter.requests.length, 1, "not before a second has passed");
  assert.equal(await client.flush({ timeoutMs: 1500 }), false);
  assert.equal(meter.requests.length, 2);
  assert.equal(await client.close(), false);
});

test("close makes a last try out of a wait, but Retry-After is kept", async () => {
  for (const [fault, requests] of [[fail.reset(), 2], [fail.status(503, { "retry-after": "60" }), 1]]) {
    const meter = new FakeMeter();
    meter.faults = [fault];
    const { client } = clientOf(meter, { retryMsFirst: 60_000, retryMsMax: 60_000, closeMsMax: 200 });
    void client.track(CALL);
    await client.flush({ timeoutMs: 10 });
    assert.equal(await client.close(), requests === 2);
    assert.equal(meter.requests.length, requests);
  }
});

test("reads are tried again, and keep every digit as text", async () => {
  const meter = new FakeMeter();
  meter.faults = [fail.status(503), fail.reset(), () => answer(200, { metrics: [{ name: "calls", current: "999999999999999.999999" }] })];
  const { client } = clientOf(meter, { customerId: "cora" });
  const usage = await client.getUsage();
  assert.equal(usage.metrics[0].current, "999999999999999.999999");
  assert.match(meter.requests[2].url, /\/v1\/usage\/current\?tenantId=acme&customerRef=cora&numbers=string$/);
  meter.faults = [fail.status(404), ...Array.from({ length: 5 }, () => fail.status(500)), () => answer(200, "<html>")];
  await assert.rejects(client.getEvents({ startTime: new Date(0) }), (error) => error.kind === "rejected" && error.status === 404);
  await assert.rejects(client.getEvents(), (error) => error.kind === "unavailable");
  await assert.rejects(client.getEvents(), /no JSON/);
  await assert.rejects(clientOf(meter).client.getUsage(), /customerRef is missing/);
});
