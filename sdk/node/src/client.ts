/**
 * The client: what an app calls.
 *
 * Rules it keeps: in buffered mode nothing that an app gives to `track` makes it throw, but for `backpressure: "raise"`;
 * every refusal is told. Clock and randomness come in here and nowhere else. It must not know HTTP, queues or files.
 */
import { Buffered } from "./buffered.js";
import { Delivery } from "./delivery.js";
import { Direct } from "./direct.js";
import { StripeMeterError } from "./errors.js";
import { EventEncoder, EventError, remainsOf, type Entry } from "./event.js";
import { Http } from "./http.js";
import { keySource } from "./keys.js";
import { settingsOf, type ClientOptions, type Settings } from "./options.js";
import { Reads } from "./reads.js";
import { Spool } from "./spool.js";
import { Tally } from "./tally.js";
import { Teller } from "./teller.js";
import type {
  BatchResult,
  CallOptions,
  EventPage,
  EventsQuery,
  FlushOptions,
  HistoryQuery,
  Projection,
  ProjectionQuery,
  Statistics,
  TrackResult,
  Usage,
  UsageEvent,
  UsageHistory,
} from "./types.js";

const FLUSH_MS_MAX = 30_000;

/** A client of one tenant. Make one for the whole app, with `createClient`. */
export class StripeMeterClient {
  readonly #settings: Settings;
  readonly #tally = new Tally();
  readonly #teller: Teller;
  readonly #encoder: EventEncoder;
  readonly #nextKey = keySource();
  readonly #way: Buffered | Direct;
  readonly #reads: Reads;
  #closing: Promise<boolean> | undefined;

  /** Throws StripeMeterError of kind `invalid` for options that can't be used. */
  constructor(options: ClientOptions) {
    const settings = settingsOf(options);
    this.#settings = settings;
    this.#teller = new Teller(settings.onError, Date.now);
    this.#encoder = encoderOf(settings);
    const http = new Http(settings);
    const delivery = new Delivery(http, settings, this.#tally, this.#teller, Math.random);
    this.#reads = new Reads(http, settings, Math.random);
    if (settings.mode === "direct") {
      this.#way = new Direct(settings, delivery, this.#tally, this.#teller);
    } else {
      const { spool } = settings;
      const kept = spool && new Spool(spool.path, spool.sync, settings.tenantId, this.#tally, this.#teller, Date.now);
      this.#way = new Buffered(settings, delivery, this.#tally, this.#teller, kept);
    }
  }

  /**
   * Meter one event.
   *
   * Buffered: resolves with `queued` as soon as the event is in the queue (and in the spool), at once but for `block`; no
   * need to await it. It never rejects, but with `queue_full` under `raise`. Direct: resolves when the server has it on disk;
   * rejects with StripeMeterError, or with the signal's reason.
   */
  track(event: UsageEvent, options?: CallOptions): Promise<TrackResult> {
    // Not an async function: on the app's path each of its promises would cost a tenth of the whole call.
    try {
      if (this.#closing !== undefined) return Promise.resolve(this.#whenClosed([event])[0] as TrackResult);
      const entry = this.#encode(event);
      if (!isEntry(entry)) return Promise.resolve(entry);
      return this.#way instanceof Buffered ? Promise.resolve(this.#way.track(entry)) : this.#way.sendOne(entry, options?.signal);
    } catch (error) {
      return Promise.reject(error as Error);
    }
  }

  /**
   * Meter several events with one call; `results[i]` is about `events[i]`.
   *
   * Buffered: as `track` for each; one that is no event does not stop its neighbours. Direct: one that is no event rejects the call before
   * anything is sent; what the server says of each event is in the results, and the call rejects only if all of it was refused or not
   * all could be settled.
   */
  async trackBatch(events: readonly UsageEvent[], options: CallOptions = {}): Promise<BatchResult> {
    if (this.#closing !== undefined) return batchResult(this.#whenClosed(events));
    const encoded = events.map((event) => this.#encode(event));
    const entries = encoded.filter(isEntry);
    const sent = this.#way instanceof Buffered ? await this.#way.trackAll(entries) : await this.#way.sendAll(entries, options.signal);
    let next = 0;
    return batchResult(encoded.map((one) => (isEntry(one) ? (sent[next++] as TrackResult) : one)));
  }

  /** What a customer has used in the running period. `customerRef` absent: the client's `customerId`. */
  async getUsage(customerRef?: string, options: CallOptions = {}): Promise<Usage> {
    const query = { customerRef: this.#customer(customerRef) };
    return (await this.#reads.get("/v1/usage/current", query, options.signal)) as Usage;
  }

  /** A metric's use over time, of one customer or (without `customerRef`) of all. */
  async getUsageHistory(query: HistoryQuery, options: CallOptions = {}): Promise<UsageHistory> {
    return (await this.#reads.get("/v1/usage/history", { ...query }, options.signal)) as UsageHistory;
  }

  /** What the customer's invoice would be now. */
  async getProjection(query: ProjectionQuery = {}, options: CallOptions = {}): Promise<Projection> {
    const body = { ...query, customerRef: this.#customer(query.customerRef) };
    return (await this.#reads.post("/v1/usage/projection", body, options.signal)) as Projection;
  }

  /** A page of events as the server keeps them. */
  async getEvents(query: EventsQuery = {}, options: CallOptions = {}): Promise<EventPage> {
    return (await this.#reads.get("/v1/events", { ...query }, options.signal)) as EventPage;
  }

  /**
   * Send what waits, now. True when all that was tracked before the call is settled (counted, or refused and told); false when that
   * took longer than `timeoutMs` (default 30000), and then nothing is lost: it goes on behind your back.
   */
  async flush(options: FlushOptions = {}): Promise<boolean> {
    if (this.#way instanceof Direct) return true;
    return this.#way.flush(options.timeoutMs ?? FLUSH_MS_MAX, options.signal);
  }

  /**
   * Flush within `closeMsMax`, and end. True when all was settled. What could not be sent is told, or stays in the spool. Calling it
   * again is the same call. A `signal` ends the waiting, not the closing.
   */
  async close(options: CallOptions = {}): Promise<boolean> {
    const { signal } = options;
    signal?.throwIfAborted();
    this.#closing ??= this.#way instanceof Buffered ? this.#way.close() : Promise.resolve(true);
    return signal === undefined ? this.#closing : unlessAborted(this.#closing, signal);
  }

  /** Counters since the client was made. */
  statistics(): Statistics {
    return this.#tally.statistics();
  }

  #customer(customerRef: string | undefined): string {
    const customer = customerRef ?? this.#settings.customerId;
    if (customer === undefined) throw new StripeMeterError("invalid", "customerRef is missing, and the client has no customerId");
    return customer;
  }

  /** The entry, or (buffered) the result of one that is none, told. Direct mode throws. */
  #encode(event: UsageEvent): Entry | TrackResult {
    try {
      const own = event.idempotencyKey;
      // With an own key the app says that it may call twice for one event: a second time would make two of it.
      const stamp = own === undefined && this.#way instanceof Buffered;
      return this.#encoder.encode(event, own ?? this.#nextKey(), stamp);
    } catch (cause) {
      // Buffered mode lets nothing through, not even what a getter of the app throws.
      const why = cause instanceof EventError ? cause.message : `it can't be read: ${String(cause)}`;
      const error = new StripeMeterError("invalid", `not an event: ${why}`, { events: [remainsOf(event)], cause });
      if (this.#way instanceof Direct) throw error;
      this.#tally.invalid += 1;
      this.#teller.tell(error);
      return { status: "refused", idempotencyKey: null, error: error.message };
    }
  }

  #whenClosed(events: readonly UsageEvent[]): TrackResult[] {
    const message = "not counted: the client is closed";
    const error = new StripeMeterError("closed", message, { events: events.map(remainsOf) });
    if (this.#way instanceof Direct) throw error;
    this.#tally.taken += events.length;
    this.#tally.dropped += events.length;
    this.#teller.tell(error);
    return events.map(() => ({ status: "refused", idempotencyKey: null, error: message }));
  }
}

/** A client. Make one for the whole app; throws StripeMeterError of kind `invalid` for options that can't be used. */
export function createClient(options: ClientOptions): StripeMeterClient {
  return new StripeMeterClient(options);
}

function encoderOf(settings: Settings): EventEncoder {
  try {
    return new EventEncoder(settings.tenantId, settings.customerId, Date.now);
  } catch (cause) {
    if (cause instanceof EventError) throw new StripeMeterError("invalid", cause.message, { cause });
    throw cause;
  }
}

function isEntry(one: Entry | TrackResult): one is Entry {
  return "line" in one;
}

function batchResult(results: readonly TrackResult[]): BatchResult {
  const count = (...statuses: TrackResult["status"][]): number => results.filter(({ status }) => statuses.includes(status)).length;
  return {
    results,
    queued: count("queued"),
    accepted: count("accepted"),
    duplicates: count("duplicate"),
    failed: count("rejected", "refused", "dropped"),
  };
}

async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  let aborted: () => void = () => undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        aborted = () => reject(signal.reason as Error);
        signal.addEventListener("abort", aborted);
      }),
    ]);
  } finally {
    signal.removeEventListener("abort", aborted);
  }
}
