/**
 * The client's options: what an app may say, the defaults, and the bounds.
 *
 * Rules it keeps: a wrong option is an error at once, when the app starts, with the option's name; everything has a
 * bound. It must not know how the options are used.
 */
import { StripeMeterError } from "./errors.js";
import type { TrackedEvent } from "./types.js";

/** Where a crash of the app loses nothing: see docs/sdk-node.md. */
export interface SpoolOptions {
  /** A directory of a local disk; it is made if it is missing. Any number of processes of one machine may share it. */
  readonly path: string;
  /**
   * When the disk must have an event: `batch` (default) in the background, at every flush interval: nothing is lost
   * when the app crashes; `always` before `track` returns: nothing is lost when the power fails.
   */
  readonly sync?: "batch" | "always" | undefined;
}

/** What an app may say to `createClient`. */
export interface ClientOptions {
  /** Where StripeMeter is, such as `http://127.0.0.1:3000`. */
  readonly apiUrl: string;
  readonly tenantId: string;
  /** The `customerRef` of calls that name none. */
  readonly customerId?: string | undefined;
  readonly apiKey?: string | undefined;
  /** `buffered` (default): `track` puts the event into a queue. `direct`: it answers when the server did. */
  readonly mode?: "buffered" | "direct" | undefined;
  /**
   * Told of every event that will not be counted, and of a spool that fails (then without an event). Must not be slow;
   * what it throws is shown as a process warning. Absent: process warnings, at most one a minute.
   */
  readonly onError?: ((error: StripeMeterError, event?: TrackedEvent) => void) | undefined;
  /** Events in one request; the queue is flushed when it holds so many. Default 500. */
  readonly batchEventsMax?: number | undefined;
  /** Bytes of one request. Default 524288, half of what a server takes by default. */
  readonly batchBytesMax?: number | undefined;
  /** Events that may wait; one batch more may be on its way. Default 10000. */
  readonly queueEventsMax?: number | undefined;
  /** Bytes of events that may wait. Default 16777216. */
  readonly queueBytesMax?: number | undefined;
  /** How long an event waits at most before it is sent. Default 1000. */
  readonly flushIntervalMs?: number | undefined;
  /** When the queue is full: `drop_oldest` (default), `block`: `track` resolves when there is room, `raise`: it rejects. */
  readonly backpressure?: "drop_oldest" | "block" | "raise" | undefined;
  /** How long `block` may block; then the event is dropped. Default 5000. */
  readonly blockMsMax?: number | undefined;
  /** Of one request; after it its outcome is unknown and it is sent again. Default 10000. */
  readonly timeoutMs?: number | undefined;
  /** The wait before a retry: doubled from the first (default 100) to the most (default 30000), with jitter. */
  readonly retryMsFirst?: number | undefined;
  readonly retryMsMax?: number | undefined;
  /** Requests for one call in direct mode and for one read. Default 5. */
  readonly attemptsMax?: number | undefined;
  /** How long `close` and the end of the process flush; what is left then is dropped and told, or stays in the spool. Default 5000. */
  readonly closeMsMax?: number | undefined;
  readonly spool?: SpoolOptions | undefined;
  /** In place of the global `fetch`: for proxies and tests. */
  readonly fetch?: typeof globalThis.fetch | undefined;
}

/** The options with their defaults, checked. */
export interface Settings {
  readonly apiUrl: string;
  readonly tenantId: string;
  readonly customerId: string | undefined;
  readonly apiKey: string | undefined;
  readonly mode: "buffered" | "direct";
  readonly onError: ((error: StripeMeterError, event?: TrackedEvent) => void) | undefined;
  readonly batchEventsMax: number;
  readonly batchBytesMax: number;
  readonly queueEventsMax: number;
  readonly queueBytesMax: number;
  readonly flushIntervalMs: number;
  readonly backpressure: "drop_oldest" | "block" | "raise";
  readonly blockMsMax: number;
  readonly timeoutMs: number;
  readonly retryMsFirst: number;
  readonly retryMsMax: number;
  readonly attemptsMax: number;
  readonly closeMsMax: number;
  readonly spool: { readonly path: string; readonly sync: "batch" | "always" } | undefined;
  readonly fetch: typeof globalThis.fetch;
}

/** What timers take. */
const MS_MAX = 2 ** 31 - 1;
const NAMES = new Set([
  ...["apiUrl", "tenantId", "customerId", "apiKey", "mode", "onError", "batchEventsMax", "batchBytesMax"],
  ...["queueEventsMax", "queueBytesMax", "flushIntervalMs", "backpressure", "blockMsMax", "timeoutMs", "retryMsFirst"],
  ...["retryMsMax", "attemptsMax", "closeMsMax", "spool", "fetch"],
]);

/** The settings of a client. Throws StripeMeterError of kind `invalid` that names the option. */
export function settingsOf(options: ClientOptions): Settings {
  for (const given of Object.keys(options)) {
    if (!NAMES.has(given)) throw wrong(given, `is no option; there are: ${[...NAMES].join(", ")}`);
  }
  const mode = oneOf("mode", options.mode, ["buffered", "direct"] as const);
  if (options.onError !== undefined && typeof options.onError !== "function") throw wrong("onError", "must be a function");
  if (mode === "direct" && options.spool !== undefined) {
    throw wrong("spool", "belongs to mode \"buffered\": a direct call answers when the server has the event");
  }
  const fetched = options.fetch ?? globalThis.fetch;
  if (typeof fetched !== "function") throw wrong("fetch", "is missing; Node 18 and newer have it");
  return {
    apiUrl: urlOf(options.apiUrl),
    tenantId: text("tenantId", options.tenantId),
    customerId: options.customerId === undefined ? undefined : text("customerId", options.customerId),
    apiKey: options.apiKey === undefined ? undefined : keyOf(options.apiKey),
    mode,
    onError: options.onError,
    batchEventsMax: whole("batchEventsMax", options.batchEventsMax, 500, 1, 10_000),
    batchBytesMax: whole("batchBytesMax", options.batchBytesMax, 512 << 10, 1024, 16 << 20),
    queueEventsMax: whole("queueEventsMax", options.queueEventsMax, 10_000, 1, 10_000_000),
    queueBytesMax: whole("queueBytesMax", options.queueBytesMax, 16 << 20, 1024, 2 ** 31),
    flushIntervalMs: whole("flushIntervalMs", options.flushIntervalMs, 1000, 1, MS_MAX),
    backpressure: oneOf("backpressure", options.backpressure, ["drop_oldest", "block", "raise"] as const),
    blockMsMax: whole("blockMsMax", options.blockMsMax, 5000, 0, MS_MAX),
    timeoutMs: whole("timeoutMs", options.timeoutMs, 10_000, 1, MS_MAX),
    retryMsFirst: whole("retryMsFirst", options.retryMsFirst, 100, 1, MS_MAX),
    retryMsMax: whole("retryMsMax", options.retryMsMax, 30_000, 1, MS_MAX),
    attemptsMax: whole("attemptsMax", options.attemptsMax, 5, 1, 1000),
    closeMsMax: whole("closeMsMax", options.closeMsMax, 5000, 0, MS_MAX),
    spool: options.spool === undefined ? undefined : spoolOf(options.spool),
    fetch: fetched,
  };
}

function wrong(option: string, why: string): StripeMeterError {
  return new StripeMeterError("invalid", `${option} ${why}`);
}

function text(option: string, value: unknown): string {
  if (typeof value !== "string" || value === "") throw wrong(option, "must be text, and not empty");
  return value;
}

/** Without a slash at its end. A password in it would end up in logs. */
function urlOf(value: unknown): string {
  let url: URL;
  try {
    url = new URL(text("apiUrl", value));
  } catch {
    throw wrong("apiUrl", "must be an address such as http://127.0.0.1:3000");
  }
  if (!["http:", "https:"].includes(url.protocol)) throw wrong("apiUrl", "must begin with http:// or https://");
  if (url.username !== "" || url.password !== "") throw wrong("apiUrl", "must not hold a password; use apiKey");
  if (url.search !== "" || url.hash !== "") throw wrong("apiUrl", "must not hold a query");
  return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
}

/** What a header can carry; the value itself is in no message. */
function keyOf(value: unknown): string {
  if (!/^[\x21-\x7e]+$/.test(text("apiKey", value))) throw wrong("apiKey", "must be printable ASCII without blanks");
  return value as string;
}

function whole(option: string, value: number | undefined, otherwise: number, least: number, most: number): number {
  const chosen = value ?? otherwise;
  if (!Number.isInteger(chosen) || chosen < least || chosen > most) {
    throw wrong(option, `must be a whole number from ${least} to ${most}`);
  }
  return chosen;
}

/** The first is the default. */
function oneOf<T extends string>(option: string, value: T | undefined, allowed: readonly [T, ...T[]]): T {
  const chosen = value ?? allowed[0];
  if (!allowed.includes(chosen)) throw wrong(option, `must be one of ${allowed.join(", ")}`);
  return chosen;
}

function spoolOf(value: SpoolOptions): Settings["spool"] {
  if (typeof value !== "object" || value === null) throw wrong("spool", "must be an object with a path");
  return { path: text("spool.path", value.path), sync: oneOf("spool.sync", value.sync, ["batch", "always"] as const) };
}
