/**
 * Sends entries until each is settled: attempts, waits, halves.
 *
 * Rules it keeps: a retry sends the same bytes; order is kept; what is settled is told part by part; whoever gives up
 * gets back exactly what is not settled. It must not know where entries come from.
 */
import { StripeMeterError } from "./errors.js";
import { eventOf, type Entry } from "./event.js";
import { NoAnswer, type Http } from "./http.js";
import { waitMs, type Pace, type Pause } from "./retry.js";
import type { Tally } from "./tally.js";
import type { Teller } from "./teller.js";
import { judge, type Settled, type Verdict } from "./verdict.js";

/** Told of a part that is settled; the results are in the order of its entries. */
export type Settle = (entries: readonly Entry[], settled: Settled) => void;

/** How long to go on. */
export interface Persistence {
  /** Requests for one part; Infinity for a queue. */
  readonly attemptsMax: number;
  /** A caller waits: the process stays alive between attempts. */
  readonly hold: boolean;
  readonly signal: AbortSignal | undefined;
}

/** Entries that were given up; `cause` is the signal's reason, or a StripeMeterError of kind `unavailable`. */
export class GivenUp extends Error {
  constructor(
    readonly entries: readonly Entry[],
    override readonly cause: unknown,
  ) {
    super("given up");
  }
}

/** The bytes of a request. */
export function bodyOf(entries: readonly Entry[]): string {
  return `{"events":[${entries.map((entry) => entry.line).join(",")}]}`;
}

/** Cut entries into requests. */
export function batches(entries: readonly Entry[], eventsMax: number, bytesMax: number): Entry[][] {
  const cut: Entry[][] = [];
  let current: Entry[] = [];
  let bytes = 0;
  for (const entry of entries) {
    if (current.length > 0 && (current.length >= eventsMax || bytes + entry.bytes > bytesMax)) {
      cut.push(current);
      current = [];
      bytes = 0;
    }
    current.push(entry);
    bytes += entry.bytes + 1;
  }
  if (current.length > 0) cut.push(current);
  return cut;
}

/** Delivers over one way. */
export class Delivery {
  readonly #http: Http;
  readonly #pace: Pace;
  readonly #tally: Tally;
  readonly #teller: Teller;
  readonly #random: () => number;

  constructor(http: Http, pace: Pace, tally: Tally, teller: Teller, random: () => number) {
    this.#http = http;
    this.#pace = pace;
    this.#tally = tally;
    this.#teller = teller;
    this.#random = random;
  }

  /** Resolves when all parts are settled: counted, told, and given to `settle`. Rejects with GivenUp. */
  async deliver(parts: readonly Entry[][], persistence: Persistence, pause: Pause, settle: Settle): Promise<void> {
    const waiting = [...parts].reverse();
    for (let part = waiting.pop(); part !== undefined; part = waiting.pop()) {
      const verdict = await this.#decide(part, persistence, pause).catch((cause: unknown) => {
        throw new GivenUp([part, ...waiting.reverse()].flat() as Entry[], cause);
      });
      if (verdict.kind === "split") {
        const half = Math.ceil(part.length / 2);
        waiting.push(part.slice(half), part.slice(0, half));
        continue;
      }
      for (const result of verdict.results) this.#tally.settled(result);
      settle(part, verdict);
      for (const error of verdict.errors) this.#teller.tell(error);
    }
  }

  /** Attempt until there is a verdict. Throws what it gave up for. */
  async #decide(part: readonly Entry[], persistence: Persistence, pause: Pause): Promise<Exclude<Verdict, { kind: "again" }>> {
    const { attemptsMax, hold, signal } = persistence;
    const body = bodyOf(part);
    for (let attempt = 1; ; attempt += 1) {
      const verdict = await this.#attempt(body, part, signal);
      if (verdict.kind !== "again") return verdict;
      if (attempt >= attemptsMax) {
        const message = `gave up after ${attempt} attempts; sending the same keys again is safe. Last: ${verdict.why}`;
        throw new StripeMeterError("unavailable", message, { events: part.map(eventOf) });
      }
      const forMs = waitMs(this.#pace, attempt, verdict.afterMs, this.#random());
      await pause.wait(forMs, hold, verdict.afterMs === undefined, signal);
      this.#tally.retries += 1;
    }
  }

  async #attempt(body: string, part: readonly Entry[], signal: AbortSignal | undefined): Promise<Verdict> {
    try {
      return judge(await this.#http.send("POST", "/v1/events/ingest", body, signal), part);
    } catch (error) {
      if (error instanceof NoAnswer) return { kind: "again", why: error.message, afterMs: undefined };
      throw error;
    }
  }
}
