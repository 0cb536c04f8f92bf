/**
 * Whole processes against the real server: how they end, what a kill -9 leaves, a storm.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { createClient } from "../dist/esm/index.js";
import { startPlace } from "./support/place.mjs";
import { seededRandom } from "./support/random.mjs";

const app = fileURLToPath(new URL("support/app.mjs", import.meta.url));
const NOWHERE = "http://127.0.0.1:9";
const SLOW_MACHINE_MS = 15_000;

/** A running app; `lines` has what it has said, `ended` resolves to its code or signal. */
function start(deed, options) {
  const child = spawn(process.execPath, [app, deed, JSON.stringify(options)], { stdio: ["ignore", "pipe", "inherit"] });
  const lines = [];
  const reader = createInterface({ input: child.stdout }).on("line", (line) => lines.push(line));
  const ended = Promise.all([once(child, "exit"), once(reader, "close")]).then(([[code, signal]]) => code ?? signal);
  return { child, lines, ended };
}

describe("processes", () => {
  let place;
  before(async () => {
    place = await startPlace();
  });
  after(() => place?.stop());

  it("the end of the process flushes", async () => {
    const { ended, lines } = start("end", { apiUrl: place.proxy, tenantId: "end", flushIntervalMs: 60_000 });
    assert.equal(await ended, 0);
    assert.deepEqual(lines, []);
    assert.deepEqual(await place.totals("end", "cora"), { calls: "3" });
  });

  it("the end of the process flushes through faults", async () => {
    await place.faults([{ kind: "lose_answer" }, { kind: "status", status: 503 }]);
    const { ended } = start("end", { apiUrl: place.proxy, tenantId: "end-faults", flushIntervalMs: 60_000 });
    assert.equal(await ended, 0);
    assert.deepEqual(await place.totals("end-faults", "cora"), { calls: "3" });
  });

  it("a client that has nothing to send holds no process", async () => {
    for (const deed of ["idle", "nothing"]) {
      const began = performance.now();
      const { ended } = start(deed, { apiUrl: place.proxy, tenantId: deed, flushIntervalMs: 60_000, closeMsMax: 60_000 });
      assert.equal(await ended, 0);
      assert.ok(performance.now() - began < SLOW_MACHINE_MS, deed);
    }
  });

  it("a server that is gone holds the process no longer than said, and every event is told", async () => {
    const began = performance.now();
    const { ended, lines } = start("end", { apiUrl: NOWHERE, tenantId: "gone", closeMsMax: 300 });
    assert.equal(await ended, 0);
    assert.ok(performance.now() - began < SLOW_MACHINE_MS);
    assert.deepEqual(lines.map((line) => line.split(" ")[1]), ["dropped", "dropped", "dropped"]);
  });

  it("process.exit sends nothing, but tells every event", async () => {
    const { ended, lines } = start("exit", { apiUrl: NOWHERE, tenantId: "exit" });
    assert.equal(await ended, 7);
    assert.deepEqual(lines, ["told dropped k0", "told dropped k1", "told dropped k2"]);
  });

  it("on SIGTERM an app closes its client, as the manual says", async () => {
    const { child, ended, lines } = start("server", { apiUrl: place.proxy, tenantId: "term", flushIntervalMs: 60_000 });
    while (!lines.includes("ready")) await once(child.stdout, "data");
    child.kill("SIGTERM");
    assert.equal(await ended, 0);
    assert.deepEqual(lines, ["ready", "closed true"]);
    assert.deepEqual(await place.totals("term", "cora"), { calls: "1" });
  });

  it("an app that is killed again and again loses nothing that track returned, and counts nothing twice", async () => {
    const { below } = seededRandom("kill");
    const path = mkdtempSync(join(tmpdir(), "stripemeter-kill-"));
    const options = { apiUrl: place.proxy, tenantId: "kill", flushIntervalMs: 5, retryMsFirst: 5, retryMsMax: 20, spool: { path } };
    let tracked = 0;
    let begun = 0;
    try {
      for (let life = 0; life < 6; life += 1) {
        await place.faults([{ kind: "lose_answer", times: below(3) }, { kind: "reset_before", times: below(3) }]);
        const { child, ended, lines } = start("track", options);
        const least = 1 + below(400);
        while (lines.length < least) await once(child.stdout, "data");
        child.kill("SIGKILL");
        assert.equal(await ended, "SIGKILL");
        assert.ok(lines.every((line) => line.startsWith("tracked")), lines.find((line) => !line.startsWith("tracked")));
        const last = Number(lines.at(-1).split(" ")[1]);
        tracked += last;
        begun += last + 1; // the call that was being made
      }
      await place.calm();
      const client = createClient({ ...options, closeMsMax: 30_000 });
      assert.equal(await client.close(), true);
      const total = Number((await place.totals("kill", "cora")).calls);
      assert.ok(total >= tracked && total <= begun, `${tracked} <= ${total} <= ${begun}`);
      const [tenant] = readdirSync(path);
      assert.deepEqual(readdirSync(join(path, tenant)), []);
    } finally {
      rmSync(path, { recursive: true, force: true });
    }
  });

  it("20,000 events through a storm of faults are 20,000 events", async () => {
    const { seed, below } = seededRandom("storm");
    await place.calm();
    await place.storm(seed, 0.4);
    const told = [];
    const client = createClient({
      apiUrl: place.proxy,
      tenantId: "storm",
      batchEventsMax: 250,
      queueEventsMax: 5000,
      flushIntervalMs: 20,
      backpressure: "block",
      blockMsMax: 60_000,
      retryMsFirst: 1,
      retryMsMax: 20,
      onError: (error) => told.push(error),
    });
    const micros = new Map();
    for (let call = 0; call < 20_000; call += 1) {
      const customerRef = `customer-${below(7)}`;
      const quantity = below(5000);
      micros.set(customerRef, (micros.get(customerRef) ?? 0) + quantity);
      // As an exact decimal: thousandths.
      await client.track({ metric: "calls", customerRef, quantity: `${Math.floor(quantity / 1000)}.${String(quantity % 1000).padStart(3, "0")}` });
    }
    assert.equal(await client.flush({ timeoutMs: 60_000 }), true);
    await place.calm();
    assert.deepEqual(told, []);
    for (const [customerRef, thousandths] of micros) {
      const { calls } = await place.totals("storm", customerRef);
      assert.equal(Math.round(Number(calls) * 1000), thousandths, `${customerRef}, SEED=${seed}`);
    }
    const { accepted, duplicates, retries, tracked } = client.statistics();
    assert.deepEqual([tracked, accepted + duplicates], [20_000, 20_000]);
    assert.ok(retries > 0 && duplicates > 0, "there was a storm");
    await client.close();
  });
});
