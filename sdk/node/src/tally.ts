/**
 * The client's counters.
 *
 * Rules it keeps: every event that was taken is in exactly one of accepted, duplicates, refused, dropped, or waits. It
 * must not know why anything is counted.
 */
import type { Statistics, TrackResult } from "./types.js";

/** Counts since the client was made. */
export class Tally {
  /** Taken by `track`, or found in a spool. */
  taken = 0;
  accepted = 0;
  duplicates = 0;
  /** Refused by the server. */
  refused = 0;
  /** No event, found at the call. */
  invalid = 0;
  dropped = 0;
  retries = 0;
  unspooled = 0;

  /** Count what the server said of one event. */
  settled(result: TrackResult): void {
    if (result.status === "accepted") this.accepted += 1;
    else if (result.status === "duplicate") this.duplicates += 1;
    else this.refused += 1;
  }

  /** A copy for the app. */
  statistics(): Statistics {
    return {
      tracked: this.taken,
      accepted: this.accepted,
      duplicates: this.duplicates,
      rejected: this.refused + this.invalid,
      dropped: this.dropped,
      queued: this.taken - this.accepted - this.duplicates - this.refused - this.dropped,
      retries: this.retries,
      unspooled: this.unspooled,
    };
  }
}
