/**
 * Runs cases of sdk/conformance/cases.json with the built client.
 *
 * Rules it keeps: what sdk/conformance/README.md says about a case, and nothing more; a step that throws does not end
 * the case. It must not know which case it runs.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient, StripeMeterError } from "../../dist/esm/index.js";
import { startPlace } from "./place.mjs";

const cases = JSON.parse(readFileSync(new URL("../../../conformance/cases.json", import.meta.url), "utf8"));

const SLOW_MACHINE_MS = 15_000;

/** The conformance file's options under this client's names. */
const OPTIONS = {
  batchEventsMax: ["batchEventsMax", 1],
  queueEventsMax: ["queueEventsMax", 1],
  flushIntervalSeconds: ["flushIntervalMs", 1000],
  timeoutSeconds: ["timeoutMs", 1000],
  retrySecondsFirst: ["retryMsFirst", 1000],
  retrySecondsMax: ["retryMsMax", 1000],
  attemptsMax: ["attemptsMax", 1],
  backpressure: ["backpressure", undefined],
  blockSecondsMax: ["blockMsMax", 1000],
  closeSecondsMax: ["closeMsMax", 1000],
};

function optionsOf(given) {
  const options = {};
  for (const [name, value] of Object.entries(given ?? {})) {
    assert.ok(name in OPTIONS, `no such option: ${name}`);
    const [own, factor] = OPTIONS[name];
    options[own] = factor === undefined ? value : value * factor;
  }
  return options;
}

function quantityOf(value) {
  if (typeof value !== "object" || value === null) return value;
  if ("float" in value) return Number(value.float);
  return "integer" in value ? BigInt(value.integer) : value.decimal;
}

function tsOf(value) {
  if (typeof value !== "object" || value === null) return value;
  const date = new Date(Date.now() - value.secondsAgo * 1000);
  const iso = date.toISOString();
  switch (value.form) {
    case "z":
      return iso;
    case "offset":
      return new Date(date.getTime() + 7_200_000).toISOString().replace("Z", "+02:00");
    case "nanoseconds":
      return iso.replace("Z", "123456Z");
    case "native":
      return date;
    case "naive":
      return iso.replace("Z", "");
    default:
      throw new Error(`no such form: ${value.form}`);
  }
}

function eventOf(step) {
  const event = { ...step };
  delete event.do;
  delete event.times;
  if ("quantity" in event) event.quantity = quantityOf(event.quantity);
  if ("ts" in event) event.ts = tsOf(event.ts);
  return event;
}

const STEPS = {
  track: (client, step) => client.track(eventOf(step)),
  trackBatch: (client, step) => client.trackBatch(step.events.map(eventOf)),
  async flush(client, step) {
    const settled = await client.flush({ timeoutMs: (step.seconds ?? 30) * 1000 });
    if ("settled" in step) assert.equal(settled, step.settled);
  },
  close: (client) => client.close(),
  wait: (_, step) => sleep(step.seconds * 1000),
  calm: (_client, _step, place) => place.calm(),
  async getUsage(client, step) {
    const { metrics } = await client.getUsage(step.customerRef);
    assert.deepEqual(Object.fromEntries(metrics.map(({ name, current }) => [name, current])), step.current);
  },
  async getUsageHistory(client, step) {
    const { metric, customerRef, total } = step;
    assert.equal((await client.getUsageHistory({ metric, customerRef, since: "-PT1H" })).totals.value, total);
  },
  async getProjection(client, step) {
    const { lineItems } = await client.getProjection({ customerRef: step.customerRef });
    assert.deepEqual(Object.fromEntries(lineItems.map(({ metric, quantity }) => [metric, quantity])), step.quantities);
  },
  async getEvents(client, step) {
    assert.equal((await client.getEvents({ customerRef: step.customerRef })).total, step.total);
  },
};

/** A test for each case of a mode, at a place of their own. */
export function conformance(mode) {
  const chosen = cases.filter((one) => one.mode === mode);
  assert.ok(chosen.length > 20);
  describe(`conformance, ${mode}`, () => {
    let place;
    before(async () => {
      place = await startPlace();
    });
    after(() => place?.stop());
    for (const [index, one] of chosen.entries()) it(one.name, () => runCase(place, one, `node-${index}`));
  });
}

/** Run a case as a tenant of its own. Throws an AssertionError when it does not come out as it says. */
async function runCase(place, one, tenantId) {
  await place.calm();
  await place.forget();
  await place.faults(one.faults ?? []);
  let told = 0;
  const client = createClient({
    apiUrl: place.proxy,
    tenantId,
    mode: one.mode,
    ...optionsOf(one.options),
    onError: (error, event) => {
      assert.ok(error instanceof StripeMeterError);
      if (event !== undefined) told += 1;
    },
  });
  try {
    let raised = null;
    for (const step of one.steps) {
      for (let time = 0; time < (step.times ?? 1); time += 1) {
        try {
          await STEPS[step.do](client, step, place);
        } catch (error) {
          if (!(error instanceof StripeMeterError)) throw error;
          raised ??= error.kind;
        }
      }
    }
    await check(place, one.expect, tenantId, { raised, told, statistics: client.statistics() });
  } finally {
    await place.calm();
    await client.close();
  }
}

async function check(place, expect, tenantId, { raised, told, statistics }) {
  assert.equal(raised, expect.raises, "raises");
  assert.equal(told, expect.onError, "onError");
  for (const { customerRef, metric, total } of expect.totals) {
    const counted = await untilCounted(place, tenantId, customerRef, metric, total);
    assert.equal(counted, total, `${metric} of ${customerRef}`);
  }
  const seen = await place.seen();
  const keys = seen.flatMap((request) => request.keys);
  if ("requestsSeen" in expect) assert.equal(seen.length, expect.requestsSeen, "requestsSeen");
  if ("distinctKeys" in expect) assert.equal(new Set(keys).size, expect.distinctKeys, "distinctKeys");
  if ("gapMsMin" in expect) assert.ok(seen[1].atMs - seen[0].atMs >= expect.gapMsMin, "gapMsMin");
  for (const [name, count] of Object.entries(expect.statistics ?? {})) assert.equal(statistics[name], count, name);
  if (expect.keysRepeatInOrder !== true) return;
  const numbers = new Map([...new Set(keys)].map((key, number) => [key, number]));
  for (const request of seen) {
    const order = request.keys.map((key) => numbers.get(key));
    assert.deepEqual(order, order.map((_, index) => order[0] + index), "keysRepeatInOrder");
  }
}

/** The total, asked again for a while: a slow machine may need longer than a case's `wait`. */
async function untilCounted(place, tenantId, customerRef, metric, total) {
  const until = performance.now() + SLOW_MACHINE_MS;
  for (;;) {
    const counted = (await place.totals(tenantId, customerRef))[metric] ?? "0";
    if (counted === total || performance.now() > until) return counted;
    await sleep(50);
  }
}
