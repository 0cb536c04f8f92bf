/**
 * What can go wrong, as errors that say what to do next.
 *
 * Rules it keeps: every error has a `kind` to branch on, and the events it is about, so that nothing is lost in
 * silence; no API key is ever in a message. It must not know how anything is sent.
 */
import type { TrackedEvent } from "./types.js";

/**
 * - `invalid`: an argument can't be an event, or the client's options can't be used; nothing was sent.
 * - `rejected`: the server refused the event, or the request, for good; the same again would be refused again.
 * - `unavailable`: no answer that settles it, although it was tried again; the server may have counted it. Sending
 *   the same key again is safe.
 * - `queue_full`: the buffer is full, and the client's `backpressure` is `raise`.
 * - `dropped`: given up: for a newer event, after waiting for room, or when the client or the process ended.
 * - `closed`: the client is closed.
 * - `spool`: the spool can't be written or read; events go on in memory.
 */
export type ErrorKind = "invalid" | "rejected" | "unavailable" | "queue_full" | "dropped" | "closed" | "spool";

/** More about an error. */
export interface ErrorDetails {
  /** HTTP status, when an answer decided. */
  readonly status?: number | undefined;
  /** Names the request in the server's log. */
  readonly requestId?: string | undefined;
  /** The events it is about; each with the key it was sent under. */
  readonly events?: readonly TrackedEvent[] | undefined;
  readonly cause?: unknown;
}

/** An error of this client. Aborting by your own `signal` rejects with the signal's reason instead. */
export class StripeMeterError extends Error {
  override readonly name = "StripeMeterError";
  readonly status: number | undefined;
  readonly requestId: string | undefined;
  readonly events: readonly TrackedEvent[];

  constructor(
    readonly kind: ErrorKind,
    message: string,
    details: ErrorDetails = {},
  ) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.status = details.status;
    this.requestId = details.requestId;
    this.events = details.events ?? [];
  }
}

/** The message of whatever was thrown, the cause's too: `fetch failed` alone helps nobody. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const cause: unknown = error.cause;
  return cause instanceof Error ? `${error.message}: ${cause.message}` : error.message;
}
