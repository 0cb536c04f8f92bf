/**
 * The shapes that an app meets: events, results, answers, options of calls.
 *
 * Rules it keeps: quantities and money in answers are decimal strings, since a JavaScript number would lose digits;
 * names are the HTTP API's. It must not know how anything is done.
 */
import type { Quantity } from "./decimals.js";

/** What an app gives to `track`. */
export interface UsageEvent {
  /** 1 to 100 characters. */
  readonly metric: string;
  /** The customer that used it, 1 to 255 characters. Absent: the client's `customerId`. */
  readonly customerRef?: string | undefined;
  readonly quantity: Quantity;
  readonly resourceId?: string | undefined;
  /** When it happened: a Date, milliseconds since 1970, or ISO 8601 with an offset. Absent: now. */
  readonly ts?: Date | number | string | undefined;
  /** Anything that JSON can hold, as an object. */
  readonly meta?: Readonly<Record<string, unknown>> | undefined;
  /** Your own key. Absent: one is made that no other call gets. */
  readonly idempotencyKey?: string | undefined;
}

/** An event as it was sent, for errors and `onError`. A refused one that is no event has what could be read of it. */
export interface TrackedEvent {
  readonly tenantId?: string;
  readonly metric?: string;
  readonly customerRef?: string;
  readonly quantity?: number | string;
  readonly resourceId?: string;
  readonly ts?: string;
  readonly meta?: Readonly<Record<string, unknown>>;
  readonly idempotencyKey?: string;
}

/**
 * What became of one event.
 *
 * - `queued`: buffered mode took it; what becomes of it later is told by `onError` if it is bad news.
 * - `accepted`, `duplicate`: the server has it, on disk and counted once.
 * - `rejected`: the server refused it for good. `refused`: it is no event and was not sent; or the client is closed.
 * - `dropped`: the buffer was full.
 */
export interface TrackResult {
  readonly status: "queued" | "accepted" | "duplicate" | "rejected" | "refused" | "dropped";
  /** Its key; null when it was refused before it got one. */
  readonly idempotencyKey: string | null;
  /** It was too late for its period, and waits as this adjustment. */
  readonly late?: boolean;
  readonly adjustmentId?: string;
  /** Why, for `rejected`, `refused` and `dropped`. */
  readonly error?: string;
}

/** What became of a batch; `results[i]` is about `events[i]`. */
export interface BatchResult {
  readonly results: readonly TrackResult[];
  readonly queued: number;
  readonly accepted: number;
  readonly duplicates: number;
  /** Rejected, refused or dropped. */
  readonly failed: number;
}

/** Of every call that waits. */
export interface CallOptions {
  /** Stops waiting: the call rejects with the signal's reason. What was sent already may have been counted. */
  readonly signal?: AbortSignal | undefined;
}

/** Of `flush` and `close`. */
export interface FlushOptions extends CallOptions {
  /** How long to wait at most. */
  readonly timeoutMs?: number | undefined;
}

/** Counters since the client was made: `tracked` = `accepted` + `duplicates` + `dropped` + `queued` + those the server rejected. */
export interface Statistics {
  /** Events taken by `track` and `trackBatch`, and those found in a spool at start; not those that were no event. */
  readonly tracked: number;
  readonly accepted: number;
  readonly duplicates: number;
  /** No event at all, or refused by the server. */
  readonly rejected: number;
  /** Given up: the queue was full, or the client ended without a spool. */
  readonly dropped: number;
  /** Waiting or on their way; of a client that ended: left in its spool. */
  readonly queued: number;
  /** Requests that were sent again. */
  readonly retries: number;
  /** Events that were in memory only, because the spool could not be written. */
  readonly unspooled: number;
}

/** A span of time, `[start, end)`. */
export interface Period {
  readonly start: string;
  readonly end: string;
}

/** How fresh an answer is. */
export interface Freshness {
  readonly lastUpdate: string | null;
  /** Seconds. */
  readonly staleness: number | null;
}

/** A customer's use of one metric in its running period. */
export interface MetricUsage {
  readonly name: string;
  readonly current: string;
  readonly aggregation: "sum" | "max" | "last";
  readonly unit: string | null;
  readonly sum: string;
  readonly max: string;
  readonly last: string;
  readonly count: number;
  readonly watermark: string | null;
  readonly period: Period;
  readonly adjusted: string;
  readonly pendingLate: number;
  readonly limit?: string;
}

/** Answer of `getUsage`. */
export interface Usage {
  readonly tenantId: string;
  readonly customerRef: string;
  readonly period: Period;
  readonly metrics: readonly MetricUsage[];
  readonly alerts: readonly { readonly type: string; readonly message: string; readonly severity: string }[];
  readonly freshness: Freshness;
}

/** Question of `getUsageHistory`. */
export interface HistoryQuery {
  readonly metric: string;
  readonly customerRef?: string | undefined;
  /** ISO 8601 with an offset, a Date, or a signed duration such as `-PT24H`. */
  readonly since: Date | string;
  readonly until?: Date | string | undefined;
  readonly interval?: "minute" | "hour" | "day" | "month" | undefined;
  /** `customerRef`, `resourceId` or `meta.KEY`. */
  readonly groupBy?: string | undefined;
}

/** Answer of `getUsageHistory`. */
export interface UsageHistory {
  readonly tenantId: string;
  readonly metric: string;
  readonly timeRange: Period;
  readonly series: readonly { readonly ts: string; readonly value: string; readonly group?: string | null }[];
  readonly totals: { readonly value: string };
  readonly groups?: readonly { readonly group: string | null; readonly value: string }[];
}

/** Question of `getProjection`. */
export interface ProjectionQuery {
  /** Absent: the client's `customerId`. */
  readonly customerRef?: string | undefined;
  /** `YYYY-MM-DD`; absent: the running period. */
  readonly periodStart?: string | undefined;
  readonly periodEnd?: string | undefined;
}

/** One line of a projection. `total` is null, with a reason, when the metric has no price. */
export interface ProjectionLine {
  readonly metric: string;
  readonly quantity: string;
  readonly unitPrice: string | null;
  readonly total: string | null;
  readonly reason?: string | null;
  readonly [field: string]: unknown;
}

/** Answer of `getProjection`: what the invoice would be now. Amounts are decimal strings. */
export interface Projection {
  readonly customerRef: string;
  readonly periodStart: string;
  readonly periodEnd: string;
  readonly lineItems: readonly ProjectionLine[];
  readonly subtotal: string | null;
  readonly credits: string | null;
  readonly tax: string | null;
  readonly total: string | null;
  readonly currency: string | null;
  readonly complete: boolean;
  readonly freshness: Freshness;
  readonly [field: string]: unknown;
}

/** Question of `getEvents`; all of it is optional. */
export interface EventsQuery {
  readonly metric?: string | undefined;
  readonly customerRef?: string | undefined;
  readonly source?: string | undefined;
  readonly startTime?: Date | string | undefined;
  readonly endTime?: Date | string | undefined;
  readonly sort?: "ts" | "metric" | "customerRef" | "source" | undefined;
  readonly sortDir?: "asc" | "desc" | undefined;
  /** 1 to 100. */
  readonly limit?: number | undefined;
  readonly offset?: number | undefined;
  readonly cursor?: string | undefined;
}

/** One event as the server keeps it. */
export interface StoredEvent {
  /** Its idempotency key. */
  readonly id: string;
  readonly tenantId: string;
  readonly metric: string;
  readonly customerRef: string;
  readonly resourceId: string | null;
  readonly quantity: string;
  readonly timestamp: string;
  readonly source: string;
  /** A JSON object as text. */
  readonly meta: string | null;
  readonly receivedAt: string;
  readonly sequence: number;
}

/** Answer of `getEvents`. */
export interface EventPage {
  readonly total: number;
  readonly totalIsLowerBound?: boolean;
  readonly events: readonly StoredEvent[];
  /** Ask with it for more; absent: no more. */
  readonly nextCursor?: string;
}
