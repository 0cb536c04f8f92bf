/**
 * From what an app gives to `track` to the JSON text that is sent, spooled and sent again.
 *
 * Rules it keeps: the text is made once, at `track` time, so that a retry sends the same bytes and a `meta` that the app
 * changes later changes nothing; what is surely no event is refused at once; `track` is on the app's request path, so
 * the common case allocates little. The server judges the rest. It must not know buffers, spools or HTTP.
 */
import { QuantityError, quantityText } from "./decimals.js";
import type { TrackedEvent, UsageEvent } from "./types.js";

/** An event that waits to be sent. */
export interface Entry {
  readonly key: string;
  /** JSON of the event as it is sent. */
  readonly line: string;
  /** Of the line in UTF-8. */
  readonly bytes: number;
  /** Where it is kept on disk until it is settled. */
  kept: Kept | undefined;
}

/** A place on disk that holds events; told when one of them needs it no more. */
export interface Kept {
  settle(): void;
}

/** Why something given to `track` is no event. */
export class EventError extends Error {}

const METRIC_CHARS_MAX = 100;
const NAME_CHARS_MAX = 255;
const META_DEPTH_MAX = 28;
const CACHED_MAX = 1000;
/** Text that JSON takes between quotes as it is. */
const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/;
/** RFC 3339: a date, a time with seconds, and an offset. The calendar is the server's business. */
const INSTANT = /^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,20})?(?:[Zz]|[+-]\d{2}:\d{2})$/;
const [QUOTE, BACKSLASH, BRACE, BRACKET] = [0x22, 0x5c, 0x7b, 0x5b] as const;
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/;

/** Encodes the events of one client. */
export class EventEncoder {
  readonly #tenant: string;
  readonly #customer: string | undefined;
  readonly #heads = new Map<string, string>();
  readonly #now: () => number;
  #stampedAtMs = Number.NaN;
  #stamp = "";

  /** `now`: milliseconds since 1970. */
  constructor(tenantId: string, customerId: string | undefined, now: () => number) {
    this.#tenant = `{"tenantId":${name("tenantId", tenantId, NAME_CHARS_MAX)},"source":"sdk","metric":`;
    this.#customer = customerId;
    this.#now = now;
  }

  /**
   * The entry of an event under its key. Throws EventError. `stamp`: an event without `ts` gets the time of this call.
   */
  encode(event: UsageEvent, key: string, stamp: boolean): Entry {
    const { metric, resourceId, ts, meta } = event;
    const customerRef = name("customerRef", event.customerRef ?? this.#customer, NAME_CHARS_MAX);
    const resource = resourceId === undefined ? "" : `,"resourceId":${name("resourceId", resourceId, NAME_CHARS_MAX)}`;
    const instant = ts !== undefined ? `,"ts":${instantText(ts)}` : stamp ? this.#stampNow() : "";
    const more = meta === undefined ? "" : `,"meta":${metaText(meta)}`;
    // Joined, not added: a string that is added up is kept as its pieces, and this one waits.
    const start = [this.#head(metric), ',"customerRef":', customerRef, ',"quantity":', quantity(event.quantity)];
    start.push(resource, instant, more, ',"idempotencyKey":', name("idempotencyKey", key, NAME_CHARS_MAX), "}");
    const line = start.join("");
    return { key, line, bytes: Buffer.byteLength(line), kept: undefined };
  }

  /** Tenant, source and metric: an app has few metrics. */
  #head(metric: string): string {
    let head = this.#heads.get(metric);
    if (head === undefined) {
      head = this.#tenant + name("metric", metric, METRIC_CHARS_MAX);
      if (this.#heads.size >= CACHED_MAX) this.#heads.clear();
      this.#heads.set(metric, head);
    }
    return head;
  }

  #stampNow(): string {
    const nowMs = this.#now();
    if (nowMs !== this.#stampedAtMs) {
      this.#stamp = `,"ts":"${new Date(nowMs).toISOString()}"`;
      this.#stampedAtMs = nowMs;
    }
    return this.#stamp;
  }
}

/** The event of a line, for whoever must be told about it. */
export function eventOf(entry: Entry): TrackedEvent {
  return JSON.parse(entry.line) as TrackedEvent;
}

/** What can be read of something that is no event. Never throws. */
export function remainsOf(event: unknown): TrackedEvent {
  const remains: Record<string, unknown> = {};
  for (const field of ["metric", "customerRef", "quantity", "resourceId", "ts", "meta", "idempotencyKey"]) {
    try {
      const value: unknown = (event as Record<string, unknown>)[field];
      if (value !== undefined) remains[field] = typeof value === "bigint" ? String(value) : value;
    } catch {
      // No object, or a getter that throws: there is nothing to tell of it.
    }
  }
  return remains;
}

function name(field: string, text: unknown, charsMax: number): string {
  if (typeof text !== "string") throw new EventError(`${field} must be text${text === undefined ? "; it is missing" : ""}`);
  // A code point has at most two units: most names need no counting.
  if (text.length === 0 || (text.length > charsMax && [...text.slice(0, 2 * charsMax + 1)].length > charsMax)) {
    throw new EventError(`${field} must have 1 to ${charsMax} characters`);
  }
  if (PLAIN.test(text)) return `"${text}"`;
  if (LONE_SURROGATE.test(text)) throw new EventError(`${field} holds half a surrogate pair, which is no text`);
  return JSON.stringify(text);
}

function quantity(value: unknown): string {
  try {
    return quantityText(value);
  } catch (error) {
    if (error instanceof QuantityError) throw new EventError(`quantity ${error.message}`);
    throw error;
  }
}

function instantText(ts: unknown): string {
  if (typeof ts === "string" && INSTANT.test(ts)) return `"${ts}"`;
  const date = typeof ts === "number" ? new Date(ts) : ts;
  if (!(date instanceof Date) || Number.isNaN(date.getTime())) {
    throw new EventError("ts must be a Date, milliseconds since 1970, or text such as 2026-01-31T12:00:00Z, with an offset");
  }
  return `"${date.toISOString()}"`;
}

function metaText(meta: unknown): string {
  if (typeof meta !== "object" || meta === null || Array.isArray(meta)) throw new EventError("meta must be an object");
  let text: string | undefined;
  try {
    text = JSON.stringify(meta);
  } catch (error) {
    throw new EventError(`meta must be something that JSON can hold: ${error instanceof Error ? error.message : error}`);
  }
  if (text?.startsWith("{") !== true) throw new EventError("meta must be an object");
  if (deeperThan(text, META_DEPTH_MAX)) throw new EventError(`meta must not nest deeper than ${META_DEPTH_MAX} levels`);
  return text;
}

/** One event that nests too deep would have the server refuse the whole request. */
function deeperThan(json: string, levels: number): boolean {
  if (json.length < 2 * levels) return false;
  let depth = 0;
  let inText = false;
  for (let at = 0; at < json.length; at += 1) {
    const code = json.charCodeAt(at);
    if (code === QUOTE) inText = !inText;
    else if (inText) at += code === BACKSLASH ? 1 : 0;
    else if (code === BRACE || code === BRACKET) {
      depth += 1;
      if (depth > levels) return true;
    } else if (code === BRACE + 2 || code === BRACKET + 2) depth -= 1;
  }
  return false;
}
