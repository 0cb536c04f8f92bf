/**
 * When to try again: backoff with jitter, `Retry-After`, and waits that can be cut short.
 *
 * Rules it keeps: what `Retry-After` asks for is waited for at least; clients that failed together don't come back
 * together; a wait keeps the process alive only where a caller waits for it. Pure but for the timer. It must not
 * know what is sent.
 */
import { clearTimeout, setTimeout, type Timer } from "node:timers";

/** A server that asks for more is misconfigured, or down for so long that asking now and then does no harm. */
const RETRY_AFTER_MS_MAX = 600_000;

/** The statuses that say "later": the outcome is unknown, or the server could not take it. */
export function isRetried(status: number): boolean {
  return status === 408 || status === 425 || status === 429 || (status >= 500 && status <= 599);
}

/** How long to wait before the next try. */
export interface Pace {
  readonly retryMsFirst: number;
  readonly retryMsMax: number;
}

/**
 * Milliseconds to wait after the failed attempt number `attempt` (from 1): between half and all of the doubled first
 * wait, capped, and never less than the server asked for. `random`: from 0 up to 1.
 */
export function waitMs(pace: Pace, attempt: number, retryAfterMs: number | undefined, random: number): number {
  const doubled = pace.retryMsFirst * 2 ** Math.min(attempt - 1, 30);
  const jittered = Math.min(doubled, pace.retryMsMax) * (0.5 + random / 2);
  if (retryAfterMs === undefined) return jittered;
  // A tenth more at most, so that all who were told the same don't arrive in the same millisecond.
  return Math.max(jittered, retryAfterMs * (1 + random / 10));
}

/** Milliseconds that a `Retry-After` header asks for (seconds, or an HTTP date); undefined for none or a strange one. */
export function retryAfterMs(header: string | null, nowMs: number): number | undefined {
  if (header === null) return undefined;
  const trimmed = header.trim();
  const asked = /^\d{1,9}$/.test(trimmed) ? Number(trimmed) * 1000 : httpDateMs(trimmed) - nowMs;
  return Number.isNaN(asked) ? undefined : Math.min(Math.max(asked, 0), RETRY_AFTER_MS_MAX);
}

/** RFC 9110: `Sun, 06 Nov 1994 08:49:37 GMT`. Date.parse alone takes almost anything. */
function httpDateMs(text: string): number {
  return /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/.test(text) ? Date.parse(text) : Number.NaN;
}

/** A wait that can be cut short. */
export class Pause {
  #timer: Timer | undefined;
  #end: (() => void) | undefined;
  #beganAtMs = 0;
  #hold = false;

  /**
   * Resolves after so many milliseconds, or when cut short. Rejects with the signal's reason when that aborts.
   * `hold`: keeps the process alive meanwhile. `cuttable`: nobody asked for the wait.
   */
  async wait(milliseconds: number, hold: boolean, cuttable: boolean, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    let end: () => void = () => undefined;
    try {
      await new Promise<void>((resolve) => {
        end = resolve;
        signal?.addEventListener("abort", end);
        this.#timer = setTimeout(resolve, milliseconds);
        if (!hold) this.#timer.unref();
        this.#end = cuttable ? resolve : undefined;
        this.#beganAtMs = performance.now();
        this.#hold = hold;
      });
    } finally {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#end = undefined;
      signal?.removeEventListener("abort", end);
    }
    signal?.throwIfAborted();
  }

  /** End a wait that may be cut, but not before it has lasted so long: callers that ask often must not hammer. */
  cut(leastMs: number): void {
    if (this.#end === undefined) return;
    const leftMs = this.#beganAtMs + leastMs - performance.now();
    if (leftMs <= 0) {
      this.#end();
      return;
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#end, leftMs);
    if (!this.#hold) this.#timer.unref();
  }
}
