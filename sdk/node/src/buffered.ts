/**
 * Buffered mode: takes events on the app's path, sends them behind its back.
 *
 * Rules it keeps: taking an event never waits for the network and never throws (but under `raise`, which the app chose);
 * memory is bounded; one batch is on its way at a time, so order is kept; every event ends settled, told, or in the
 * spool. It must not know what an event says, nor how a batch is tried again.
 */
import { clearTimeout, setImmediate, setTimeout, type Timer } from "node:timers";
import { batches, GivenUp, type Delivery } from "./delivery.js";
import { messageOf, StripeMeterError } from "./errors.js";
import { eventOf, type Entry } from "./event.js";
import { hold, release, type Pending } from "./exit.js";
import type { Settings } from "./options.js";
import { Queue } from "./queue.js";
import { Pause } from "./retry.js";
import type { Spool } from "./spool.js";
import type { Tally } from "./tally.js";
import type { Teller } from "./teller.js";
import type { TrackResult } from "./types.js";
import { Waiters } from "./waiters.js";

/** A flush that is asked for often must not turn backoff off. */
const RETRY_LEAST_MS = 1000;
/** Nothing of the queue is before this place. */
const BACKLOG = -1;

/** A client's queue and its sender. */
export class Buffered implements Pending {
  readonly #settings: Settings;
  readonly #delivery: Delivery;
  readonly #tally: Tally;
  readonly #teller: Teller;
  readonly #spool: Spool | undefined;
  readonly #queue: Queue;
  readonly #pause = new Pause();
  readonly #flushes = new Waiters();
  readonly #blocked = new Waiters();
  /** Batches of what earlier clients left in the spool, before all else. */
  #backlog: Entry[][] = [];
  #inFlight: readonly Entry[] = [];
  /** The place of the first event in flight, counted from the first that was ever added. */
  #inFlightFrom = 0;
  #added = 0;
  /** Events before this place are due, whatever the size of the batch. */
  #dueTo = 0;
  #timer: Timer | undefined;
  #running: Promise<void> | undefined;
  #stop = new AbortController();
  #held = false;

  constructor(settings: Settings, delivery: Delivery, tally: Tally, teller: Teller, spool: Spool | undefined) {
    this.#settings = settings;
    this.#delivery = delivery;
    this.#tally = tally;
    this.#teller = teller;
    this.#spool = spool;
    this.#queue = new Queue(settings.queueEventsMax, settings.queueBytesMax);
    if (spool?.hasBacklog === true) {
      this.#hold();
      this.#start();
    }
  }

  /** Take one event: at once, or (a promise, under `block`) when there is room. Throws under `raise` only. */
  track(entry: Entry): TrackResult | Promise<TrackResult> {
    if (this.#hasRoom(entry)) {
      this.#take(entry);
      return queued(entry);
    }
    this.#sendAll();
    switch (this.#settings.backpressure) {
      case "raise":
        throw this.#full([entry]);
      case "drop_oldest":
        this.#takeForOldest(entry);
        return queued(entry);
      case "block":
        return this.#block(entry);
    }
  }

  /** Take events in order, each as `track` does. Under `raise` all or none. */
  async trackAll(entries: readonly Entry[]): Promise<TrackResult[]> {
    if (entries.length === 0) return [];
    const { eventsMax, bytesMax } = this.#queue;
    const bytes = entries.reduce((sum, entry) => sum + entry.bytes, this.#queue.bytes);
    const fits = this.#queue.length + entries.length <= eventsMax && bytes <= bytesMax && this.#blocked.length === 0;
    if (fits) {
      this.#spool?.keep(entries); // with one write
      for (const entry of entries) this.#add(entry);
      return entries.map(queued);
    }
    if (this.#settings.backpressure === "raise") {
      this.#sendAll();
      throw this.#full(entries);
    }
    const results: TrackResult[] = [];
    for (const entry of entries) results.push(await this.track(entry));
    return results;
  }

  /** Whether all that was taken before the call is settled, as soon as it is or after the milliseconds. */
  async flush(timeoutMs: number, signal: AbortSignal | undefined, leastMs = RETRY_LEAST_MS): Promise<boolean> {
    signal?.throwIfAborted();
    const place = this.#added;
    if (this.#isSettled(place)) return true;
    this.#sendAll();
    this.#pause.cut(leastMs);
    return this.#flushes.wait(() => this.#isSettled(place), timeoutMs, signal);
  }

  /** Flush within `closeMsMax`; give up what is left then. Whether all was settled. */
  async finish(): Promise<boolean> {
    const settled = await this.flush(this.#settings.closeMsMax, undefined, 0);
    if (!settled) await this.#giveUp("the client ended before they could be sent");
    return settled;
  }

  /** `finish`, then give up the spool. */
  async close(): Promise<boolean> {
    const settled = await this.finish();
    this.#spool?.close();
    return settled;
  }

  /** The process ends now: tell what is lost. */
  lastWords(): void {
    this.#drop([...this.#inFlight, ...this.#queue.take(Infinity, Infinity)], "the process ended before they could be sent");
  }

  #hasRoom(entry: Entry): boolean {
    return this.#queue.hasRoom(entry.bytes) && this.#blocked.length === 0;
  }

  #take(entry: Entry): void {
    this.#spool?.keep([entry]);
    this.#add(entry);
  }

  #add(entry: Entry): void {
    this.#queue.push(entry);
    this.#tally.taken += 1;
    this.#added += 1;
    if (!this.#held) this.#hold();
    if (this.#isBatchFull()) this.#start();
    else if (this.#timer === undefined) this.#setTimer();
  }

  #takeForOldest(entry: Entry): void {
    const dropped: Entry[] = [];
    while (!this.#queue.hasRoom(entry.bytes)) {
      const oldest = this.#queue.shift();
      if (oldest === undefined) break;
      oldest.kept?.settle();
      oldest.kept = undefined;
      dropped.push(oldest);
    }
    this.#take(entry);
    this.#drop(dropped, "the queue is full, and newer events came");
  }

  async #block(entry: Entry): Promise<TrackResult> {
    const { blockMsMax, queueEventsMax } = this.#settings;
    const take = (): boolean => {
      if (!this.#queue.hasRoom(entry.bytes)) return false;
      this.#take(entry);
      return true;
    };
    // Calls that wait hold memory too: as many as may wait in the queue.
    if (this.#blocked.length < queueEventsMax && (await this.#blocked.wait(take, blockMsMax))) return queued(entry);
    const why = `the queue is full, and there was no room within ${blockMsMax} ms`;
    this.#tally.taken += 1;
    this.#drop([entry], why);
    return { status: "dropped", idempotencyKey: entry.key, error: why };
  }

  #full(entries: readonly Entry[]): StripeMeterError {
    const { queueEventsMax, queueBytesMax } = this.#settings;
    const message = `the queue is full: ${queueEventsMax} events or ${queueBytesMax} bytes wait; nothing was taken`;
    return new StripeMeterError("queue_full", message, { events: entries.map(eventOf) });
  }

  /** Count and tell events that will not be sent; those in the spool are the next client's. */
  #drop(entries: readonly Entry[], why: string): void {
    const lost = entries.filter((entry) => entry.kept === undefined);
    if (lost.length === 0) return;
    this.#tally.dropped += lost.length;
    const events = lost.map(eventOf);
    this.#teller.tell(new StripeMeterError("dropped", `not counted: ${why}`, { events }));
  }

  #hold(): void {
    this.#held = true;
    hold(this);
  }

  #setTimer(): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#spool?.sync();
      this.#sendAll();
    }, this.#settings.flushIntervalMs).unref();
  }

  #isBatchFull(): boolean {
    return this.#queue.length >= this.#settings.batchEventsMax || this.#queue.bytes >= this.#settings.batchBytesMax;
  }

  /** The place of the oldest event that waits. */
  get #waitingFrom(): number {
    return this.#added - this.#queue.length;
  }

  get #hasBacklog(): boolean {
    return this.#backlog.length > 0 || this.#spool?.hasBacklog === true;
  }

  #isSettled(place: number): boolean {
    if (this.#hasBacklog || this.#waitingFrom < place) return false;
    return this.#inFlight.length === 0 || this.#inFlightFrom >= place;
  }

  /** Have all that waits now sent, however small the batch. */
  #sendAll(): void {
    this.#dueTo = this.#added;
    this.#start();
  }

  #start(): void {
    this.#running ??= this.#run();
  }

  async #run(): Promise<void> {
    // Not on the path of the call that filled the batch.
    await new Promise<void>((resolve) => setImmediate(resolve));
    const { signal } = this.#stop;
    while (!signal.aborted && this.#next()) await this.#send(signal);
    this.#running = undefined;
    if (this.#queue.length > 0) {
      if (this.#timer === undefined) this.#setTimer();
    } else if (this.#held && !this.#hasBacklog) {
      this.#held = false;
      release(this);
    }
  }

  /** Put the next batch in flight, if one is due. */
  #next(): boolean {
    const { batchEventsMax, batchBytesMax } = this.#settings;
    if (this.#backlog.length === 0 && this.#spool?.hasBacklog === true) {
      const found = this.#spool.nextBacklog() ?? [];
      this.#tally.taken += found.length;
      this.#backlog = batches(found, batchEventsMax, batchBytesMax);
    }
    const old = this.#backlog.shift();
    if (old !== undefined) {
      this.#inFlight = old;
      this.#inFlightFrom = BACKLOG;
      return true;
    }
    this.#flushes.check(false);
    if (!this.#isBatchFull() && this.#waitingFrom >= this.#dueTo) return false;
    this.#inFlightFrom = this.#waitingFrom;
    this.#inFlight = this.#queue.take(batchEventsMax, batchBytesMax);
    this.#blocked.check(true);
    return this.#inFlight.length > 0;
  }

  async #send(signal: AbortSignal): Promise<void> {
    const persistence = { attemptsMax: Infinity, hold: false, signal };
    try {
      await this.#delivery.deliver([[...this.#inFlight]], persistence, this.#pause, (entries) => {
        for (const entry of entries) entry.kept?.settle();
        this.#inFlight = this.#inFlight.slice(entries.length);
      });
    } catch (error) {
      // Nothing but our own stop ends a delivery; anything else is a defect, which the app must be told.
      const why = error instanceof GivenUp ? error.cause : error;
      const left = this.#inFlight;
      this.#inFlight = [];
      this.#drop(left, messageOf(why));
    }
    this.#flushes.check(false);
  }

  /** Stop the sender, and give up all that waits. */
  async #giveUp(why: string): Promise<void> {
    this.#stop.abort(new Error(why));
    await this.#running;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#stop = new AbortController();
    this.#blocked.endAll();
    this.#drop(this.#queue.take(Infinity, Infinity), why);
    if (this.#held) {
      this.#held = false;
      release(this);
    }
    this.#flushes.check(false);
  }
}

function queued(entry: Entry): TrackResult {
  return { status: "queued", idempotencyKey: entry.key };
}
