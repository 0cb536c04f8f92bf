/**
 * The spool: what is promised is on disk before track returns, stays until the server has it, and a bad disk does no harm.
 */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { crc32, readLines, spoolLine } from "../dist/esm/spool-lines.js";
import { CALL, clientOf, fail, FakeMeter } from "./support/fake.mjs";
import { seededRandom } from "./support/random.mjs";

/** All files below a directory, with their text. */
function filesBelow(directory) {
  return readdirSync(directory, { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    return entry.isDirectory() ? filesBelow(path) : [{ path, text: readFileSync(path, "utf8") }];
  });
}

const keysIn = (directory) => filesBelow(directory).flatMap(({ text }) => [...text.matchAll(/"idempotencyKey":"([^"]+)"/g)].map(([, key]) => key));
const down = () => Array.from({ length: 1000 }, () => fail.reset());

describe("lines", () => {
  it("have the checksum that zlib has", () => {
    const text = Buffer.from("123456789");
    assert.equal(crc32(text, 0, text.length), 0xcbf43926);
  });

  it("come back as they were, and every flipped byte and every cut is found", () => {
    const { below } = seededRandom("spool lines");
    const lines = ["größe", "\\n", "plain"].map((metric, index) => JSON.stringify({ metric, idempotencyKey: `k${index}` }));
    const bytes = Buffer.concat(lines.map(spoolLine));
    assert.deepEqual(readLines(bytes).entries.map(({ line, key }) => [line, key]), lines.map((line, index) => [line, `k${index}`]));
    for (let at = 0; at < bytes.length; at += 1) {
      const cut = readLines(bytes.subarray(0, at));
      assert.deepEqual(cut.damaged, [], "a cut line was never promised");
      assert.deepEqual(cut.entries.map(({ line }) => line), lines.slice(0, cut.entries.length));
      const flipped = Buffer.from(bytes);
      flipped[at] ^= 1 + below(255);
      const { entries } = readLines(flipped);
      for (const { line } of entries) assert.ok(lines.includes(line), "what is read is whole");
      assert.ok(entries.length < lines.length);
    }
  });
});

describe("spool", () => {
  let path;
  beforeEach(() => {
    path = mkdtempSync(join(tmpdir(), "stripemeter-spool-"));
  });
  afterEach(() => rmSync(path, { recursive: true, force: true }));
  const spooling = (meter, options = {}) => clientOf(meter, { spool: { path }, closeMsMax: 10_000, ...options });
  /** Of a server that is down: closed soon. */
  const hopeless = (meter, options = {}) => spooling(meter, { closeMsMax: 30, ...options });

  for (const sync of ["batch", "always"]) {
    it(`an event is on disk when track returns, and until the server has it (${sync})`, async () => {
      const meter = new FakeMeter();
      let duringRequest;
      meter.faults = [fail.loseAnswer(), (events) => { duringRequest = keysIn(path); return meter.take(events); }];
      const { client, told } = spooling(meter, { spool: { path, sync } });
      void client.track({ ...CALL, idempotencyKey: "a" });
      assert.deepEqual(keysIn(path), ["a"]);
      void client.trackBatch([{ ...CALL, idempotencyKey: "b" }, { ...CALL, idempotencyKey: "c" }]);
      assert.deepEqual(keysIn(path), ["a", "b", "c"]);
      assert.equal(await client.flush(), true);
      assert.deepEqual(duringRequest, ["a", "b", "c"], "not removed before the 200");
      assert.deepEqual(keysIn(path), []);
      assert.deepEqual(told, []);
      await client.close();
      assert.deepEqual(filesBelow(path), []);
    });
  }

  it("what a client could not send, the next one sends under the same keys, before its own", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    const first = hopeless(meter);
    for (const idempotencyKey of ["a", "b"]) void first.client.track({ ...CALL, idempotencyKey });
    assert.equal(await first.client.close(), false);
    assert.deepEqual([first.told, first.client.statistics().queued], [[], 2]);
    meter.faults = [];
    const second = spooling(meter);
    void second.client.track({ ...CALL, idempotencyKey: "c" });
    assert.equal(await second.client.flush(), true);
    assert.deepEqual([...meter.counted.keys()], ["a", "b", "c"]);
    assert.deepEqual(second.client.statistics().tracked, 3);
    assert.equal(await second.client.close(), true);
    assert.deepEqual(filesBelow(path), []);
  });

  it("a second client beside the first has a spool of its own, and takes nothing of a live one", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    const first = hopeless(meter);
    void first.client.track({ ...CALL, idempotencyKey: "a" });
    const idle = new FakeMeter();
    const second = spooling(idle);
    void second.client.track({ ...CALL, idempotencyKey: "b" });
    assert.equal(await second.client.close(), true);
    assert.deepEqual([...idle.counted.keys()], ["b"]);
    assert.deepEqual(keysIn(path), ["a"]);
    await first.client.close();
  });

  it("a directory of a process that is gone, or of an earlier boot, is taken over; other tenants' is not", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    for (const [tenantId, key] of [["acme", "a"], ["acme", "b"], ["acme", "c"], ["other", "d"]]) {
      const { client } = hopeless(meter, { tenantId });
      void client.track({ ...CALL, idempotencyKey: key });
      await client.close();
    }
    const [acme] = readdirSync(path).map((name) => join(path, name)).filter((root) => keysIn(root).includes("a"));
    const boot = existsSync("/proc/sys/kernel/random/boot_id") ? readFileSync("/proc/sys/kernel/random/boot_id", "utf8").slice(0, 8) : "0";
    const names = [`owned-${boot}-${2 ** 22 + 1}-77-01`, `owned-${boot}-${process.pid}-1-02`, `owned-0badb007-${process.pid}-77-03`];
    for (const [index, name] of readdirSync(acme).entries()) renameSync(join(acme, name), join(acme, names[index]));
    meter.faults = [];
    const { client } = spooling(meter);
    assert.equal(await client.close(), true);
    assert.deepEqual([...meter.counted.keys()].sort(), ["a", "b", "c"]);
  });

  it("a cut last line is passed over, a damaged one set aside and told, its neighbours are sent", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    const { client } = hopeless(meter);
    for (const idempotencyKey of ["a", "b", "c"]) void client.track({ ...CALL, idempotencyKey });
    await client.close();
    const [{ path: file, text }] = filesBelow(path);
    const damaged = text.replace('"b"', '"x"');
    writeFileSync(file, damaged + text.slice(0, 50));
    meter.faults = [];
    const second = spooling(meter);
    assert.equal(await second.client.close(), true);
    assert.deepEqual([...meter.counted.keys()], ["a", "c"]);
    assert.deepEqual(second.told.map(({ error }) => error.kind), ["spool"]);
    const left = filesBelow(path);
    assert.deepEqual([left.length, left[0].text], [1, damaged.split("\n")[1] + "\n"]);
    assert.ok(second.told[0].error.message.includes(left[0].path));
  });

  it("a place that can't be a spool is told once, and events go on in memory", async () => {
    const file = join(path, "file");
    writeFileSync(file, "");
    const meter = new FakeMeter();
    const { client, told } = spooling(meter, { spool: { path: file } });
    for (let call = 0; call < 100; call += 1) void client.track(CALL);
    assert.equal(await client.close(), true);
    assert.deepEqual(told.map(({ error }) => error.kind), ["spool"]);
    assert.match(told[0].error.message, /in memory only/);
    assert.deepEqual([meter.counted.size, client.statistics().unspooled], [100, 100]);
  });

  it("a spool that vanishes under the client is told, and made again", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    const { client, told } = spooling(meter, { retryMsFirst: 60_000, retryMsMax: 60_000 });
    const long = "x".repeat(4000);
    void client.track({ ...CALL, meta: { long } });
    rmSync(path, { recursive: true });
    for (let call = 0; call < 300; call += 1) void client.track({ ...CALL, meta: { long } });
    await sleep(1100);
    mkdirSync(path, { recursive: true });
    void client.track({ ...CALL, idempotencyKey: "last" });
    assert.deepEqual(keysIn(path).slice(-1), ["last"]);
    assert.ok(told.every(({ error }) => error.kind === "spool") && told.length <= 2, JSON.stringify(told));
    meter.faults = [];
    assert.equal(await client.close(), true);
    assert.equal(meter.counted.size, 302);
  });

  it("files are cut at a size and go one by one", async () => {
    const meter = new FakeMeter();
    const sizes = [];
    const { client } = spooling(meter, { batchEventsMax: 100 });
    const meta = { long: "x".repeat(4000) };
    for (let call = 0; call < 1000; call += 1) void client.track({ ...CALL, meta });
    assert.ok(filesBelow(path).length >= 4);
    meter.faults = Array.from({ length: 10 }, () => (events) => { sizes.push(filesBelow(path).length); return meter.take(events); });
    assert.equal(await client.flush(), true);
    assert.ok(sizes.every((size, index) => index === 0 || size <= sizes[index - 1]) && sizes.at(-1) < sizes[0], String(sizes));
    await client.close();
    assert.deepEqual(filesBelow(path), []);
  });

  it("an event that was dropped for a newer one leaves the spool", async () => {
    const meter = new FakeMeter();
    meter.faults = down();
    const { client, told } = hopeless(meter, { queueEventsMax: 2 });
    for (const idempotencyKey of ["a", "b", "c", "d"]) void client.track({ ...CALL, idempotencyKey });
    assert.deepEqual(told.map(({ event }) => event.idempotencyKey), ["a", "b"]);
    await client.close();
    meter.faults = [];
    const second = spooling(meter);
    await second.client.close();
    assert.deepEqual([...meter.counted.keys()].filter((key) => key > "b"), ["c", "d"]);
  });
});
