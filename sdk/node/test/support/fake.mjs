/**
 * A meter in memory behind a `fetch`: counts each key once, and fails as it is told.
 *
 * Rules it keeps: it answers as the server does, also when told to lose the answer (then it has counted). It must not know
 * the client.
 */
import { createClient } from "../../dist/esm/index.js";

/** Answers of a fake meter; put functions into `faults` to have the next requests fail: `(events, meter) => Response`. */
export class FakeMeter {
  faults = [];
  requests = [];
  counted = new Map();

  fetch = async (url, { body, signal, headers, method }) => {
    const events = body === undefined ? [] : JSON.parse(body).events;
    this.requests.push({ url, method, headers, body, events, atMs: performance.now() });
    await null;
    const fault = this.faults.shift();
    const response = await (fault === undefined ? this.take(events) : fault(events, this, signal));
    return response;
  };

  /** Count events and answer. */
  take(events) {
    const results = events.map(({ idempotencyKey, quantity }) => {
      const status = this.counted.has(idempotencyKey) ? "duplicate" : "accepted";
      if (status === "accepted") this.counted.set(idempotencyKey, quantity);
      return { idempotencyKey, status };
    });
    return answer(200, { results });
  }

  get keys() {
    return this.requests.map(({ events }) => events.map(({ idempotencyKey }) => idempotencyKey));
  }
}

export function answer(status, body, headers = {}) {
  return new Response(typeof body === "string" ? body : JSON.stringify(body), { status, headers });
}

export const fail = {
  status: (status, headers) => () => answer(status, { detail: "a fault" }, headers),
  reset: () => () => {
    throw new TypeError("fetch failed", { cause: new Error("ECONNRESET") });
  },
  /** Counted, but the answer does not arrive. */
  loseAnswer: () => (events, meter) => {
    meter.take(events);
    throw new TypeError("fetch failed", { cause: new Error("socket hang up") });
  },
  /** No answer until the client gives up. */
  hang: () => (_events, _meter, signal) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
};

/** A client of a fake meter with quick retries; `told` has what its onError got. */
export function clientOf(meter, options = {}) {
  const told = [];
  const client = createClient({
    apiUrl: "http://meter.invalid",
    tenantId: "acme",
    flushIntervalMs: 60_000,
    retryMsFirst: 1,
    retryMsMax: 5,
    fetch: meter.fetch,
    onError: (error, event) => told.push({ error, event }),
    ...options,
  });
  return { client, told };
}

export const CALL = { metric: "calls", customerRef: "cora", quantity: 1 };
