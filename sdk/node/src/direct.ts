/**
 * Direct mode: a call answers when the server has the event on disk, or says why not.
 *
 * Rules it keeps: attempts are bounded; what was refused or given up is told to `onError` and thrown as well; a call that gave up
 * names its events with their keys, under which they can be sent again. It must not know queues.
 */
import { batches, GivenUp, type Delivery, type Settle } from "./delivery.js";
import { StripeMeterError } from "./errors.js";
import { eventOf, type Entry } from "./event.js";
import type { Settings } from "./options.js";
import { Pause } from "./retry.js";
import type { Tally } from "./tally.js";
import type { Teller } from "./teller.js";
import type { TrackResult } from "./types.js";

interface Sent {
  readonly results: TrackResult[];
  readonly errors: StripeMeterError[];
  /** Events of requests that were refused as a whole. */
  refusedWhole: number;
}

/** Sends events of one client while their callers wait. */
export class Direct {
  readonly #settings: Settings;
  readonly #delivery: Delivery;
  readonly #tally: Tally;
  readonly #teller: Teller;

  constructor(settings: Settings, delivery: Delivery, tally: Tally, teller: Teller) {
    this.#settings = settings;
    this.#delivery = delivery;
    this.#tally = tally;
    this.#teller = teller;
  }

  /** What became of one event. Throws as `sendAll`, and StripeMeterError of kind `rejected` when the server refused it. */
  async sendOne(entry: Entry, signal: AbortSignal | undefined): Promise<TrackResult> {
    const { results, errors } = await this.#send([entry], signal);
    if (errors[0] !== undefined) throw errors[0];
    return results[0] as TrackResult;
  }

  /**
   * Results in the order of the entries. Throws StripeMeterError of kind `unavailable` when not all could be settled, of
   * kind `rejected` when the server refused all requests as a whole, or the signal's reason.
   */
  async sendAll(entries: readonly Entry[], signal: AbortSignal | undefined): Promise<TrackResult[]> {
    const { results, errors, refusedWhole } = await this.#send(entries, signal);
    if (errors[0] !== undefined && refusedWhole === entries.length) throw errors[0];
    return results;
  }

  async #send(entries: readonly Entry[], signal: AbortSignal | undefined): Promise<Sent> {
    signal?.throwIfAborted();
    const { attemptsMax, batchEventsMax, batchBytesMax } = this.#settings;
    const sent: Sent = { results: [], errors: [], refusedWhole: 0 };
    const parts = batches(entries, batchEventsMax, batchBytesMax);
    const settle: Settle = (part, settled) => {
      sent.results.push(...settled.results);
      sent.errors.push(...settled.errors);
      if (settled.whole) sent.refusedWhole += part.length;
    };
    this.#tally.taken += entries.length;
    try {
      await this.#delivery.deliver(parts, { attemptsMax, hold: true, signal }, new Pause(), settle);
    } catch (error) {
      throw error instanceof GivenUp ? this.#givenUp(error, signal) : error;
    }
    return sent;
  }

  /** What to throw; told, unless the caller itself stopped waiting. */
  #givenUp(given: GivenUp, signal: AbortSignal | undefined): unknown {
    this.#tally.dropped += given.entries.length;
    if (signal?.aborted === true) return signal.reason;
    const message = given.cause instanceof Error ? given.cause.message : String(given.cause);
    const error = new StripeMeterError("unavailable", message, { events: given.entries.map(eventOf), cause: given.cause });
    this.#teller.tell(error);
    return error;
  }
}
