/**
 * Measures `track` of the built Node SDK, buffered; started by sdk_track_node.py, which says what is measured and keeps it.
 *
 * Rules it keeps: the queue is emptied between rounds, by a `fetch` that answers at once, outside of what is timed. It must
 * not know where results go. Prints one JSON list.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createClient } from "../sdk/node/dist/esm/index.js";

const [calls, rounds] = process.argv.slice(2).map(Number);
const spool = mkdtempSync(join(tmpdir(), "stripemeter-bench-"));
const customers = Array.from({ length: 1000 }, (_, number) => `cus_${number}`);

async function fetch(_url, { body }) {
  const results = JSON.parse(body).events.map(() => ({ status: "accepted" }));
  return new Response(JSON.stringify({ results }));
}

const CASES = {
  plain: [(client, customerRef) => client.track({ metric: "api_calls", customerRef, quantity: 1 })],
  decimal: [(client, customerRef) => client.track({ metric: "api_calls", customerRef, quantity: "0.25" })],
  number: [(client, customerRef) => client.track({ metric: "api_calls", customerRef, quantity: 0.25 })],
  meta: [
    (client, customerRef) =>
      client.track({ metric: "api_calls", customerRef, quantity: 1, resourceId: "r-1", meta: { path: "/v1/things", status: 200 } }),
  ],
  "plain, with a spool": [(client, customerRef) => client.track({ metric: "api_calls", customerRef, quantity: 1 }), { spool: { path: spool } }],
};

/** Microseconds a call: the process's time on processors (collecting garbage too) and the wall's, the best and the middle round. */
async function measure(call, options) {
  const settings = { apiUrl: "http://meter.invalid", tenantId: "acme", fetch, batchEventsMax: 10_000, batchBytesMax: 16 << 20, flushIntervalMs: 3_600_000 };
  const client = createClient({ ...settings, ...options });
  const cpu = [];
  const wall = [];
  for (let round = 0; round < rounds; round += 1) {
    const cpuBefore = process.cpuUsage();
    const wallBefore = process.hrtime.bigint();
    for (let number = 0; number < calls; number += 1) void call(client, customers[number % customers.length]);
    wall.push(Number(process.hrtime.bigint() - wallBefore) / 1000 / calls);
    const used = process.cpuUsage(cpuBefore);
    cpu.push((used.user + used.system) / calls);
    if (!(await client.flush())) throw new Error("the queue was not emptied");
  }
  if (client.statistics().accepted !== calls * rounds) throw new Error("not every event was accepted");
  await client.close();
  return { cpu_us: best(cpu), wall_us: best(wall), wall_us_middle: middle(wall) };
}

const rounded = (microseconds) => Math.round(microseconds * 100) / 100;
const best = (figures) => rounded(Math.min(...figures));
const middle = (figures) => rounded([...figures].sort((a, b) => a - b)[figures.length >> 1]);

const results = [];
try {
  for (const [name, [call, options]] of Object.entries(CASES)) results.push({ case: name, ...(await measure(call, options)) });
} finally {
  rmSync(spool, { recursive: true, force: true });
}
console.log(JSON.stringify(results));
