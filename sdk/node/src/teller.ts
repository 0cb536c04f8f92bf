/**
 * Tells the app what went wrong: its `onError`, or process warnings where it has none.
 *
 * Rules it keeps: nothing is silent; nothing that the hook does (throw, reject) reaches the app's request path or ends
 * the process; warnings are few. It must not know what went wrong.
 */
import { messageOf, type StripeMeterError } from "./errors.js";
import type { TrackedEvent } from "./types.js";

const WARNING_EVERY_MS = 60_000;

/** Tells one client's app. */
export class Teller {
  readonly #onError: ((error: StripeMeterError, event?: TrackedEvent) => unknown) | undefined;
  readonly #now: () => number;
  #warnedAtMs = Number.NEGATIVE_INFINITY;
  #unsaid = 0;

  constructor(onError: ((error: StripeMeterError, event?: TrackedEvent) => void) | undefined, now: () => number) {
    this.#onError = onError;
    this.#now = now;
  }

  /** Tell of an error, once for each of its events, or once without. Never throws. */
  tell(error: StripeMeterError): void {
    if (error.events.length === 0) this.#tellOne(error, undefined);
    for (const event of error.events) this.#tellOne(error, event);
  }

  #tellOne(error: StripeMeterError, event: TrackedEvent | undefined): void {
    if (this.#onError === undefined) {
      this.#warn(`${error.message} (give createClient an onError to be told of each event)`);
      return;
    }
    try {
      const returned = event === undefined ? this.#onError(error) : this.#onError(error, event);
      if (returned instanceof Promise) returned.catch((thrown: unknown) => this.#hookFailed(thrown));
    } catch (thrown) {
      this.#hookFailed(thrown);
    }
  }

  #hookFailed(thrown: unknown): void {
    this.#warn(`onError failed: ${messageOf(thrown)}`);
  }

  #warn(message: string): void {
    if (this.#now() - this.#warnedAtMs < WARNING_EVERY_MS) {
      this.#unsaid += 1;
      return;
    }
    this.#warnedAtMs = this.#now();
    const more = this.#unsaid === 0 ? "" : `; and ${this.#unsaid} more before it`;
    this.#unsaid = 0;
    process.emitWarning(message + more, { type: "StripeMeterWarning", code: "STRIPEMETER" });
  }
}
