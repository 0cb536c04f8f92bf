/**
 * What an answer to an ingest request says about its events.
 *
 * Rules it keeps: only a whole 200 with a result for each event settles a batch as counted; what may have been counted is
 * sent again; a refusal is final. Pure. It must not know how anything is sent or kept.
 */
import { StripeMeterError } from "./errors.js";
import { eventOf, type Entry } from "./event.js";
import { detailOf, type Answer } from "./http.js";
import { isRetried } from "./retry.js";
import type { TrackResult } from "./types.js";

/** `again`: send the same bytes once more; `split`: in halves. */
export type Verdict = Settled | { readonly kind: "split" } | Again;

/** Each entry has its result; `errors` are of those that are rejected. `whole`: the request was refused as a whole. */
export interface Settled {
  readonly kind: "settled";
  readonly results: readonly TrackResult[];
  readonly errors: readonly StripeMeterError[];
  readonly whole: boolean;
}

/** Not known yet. */
export interface Again {
  readonly kind: "again";
  readonly why: string;
  readonly afterMs: number | undefined;
}

/** About the body, as no 401, 403 or 404 is: it may be about one of its events, such as one whose meta nests too deep. */
const SPLIT_STATUSES: readonly number[] = [400, 413];

interface Result {
  readonly status?: unknown;
  readonly late?: unknown;
  readonly adjustmentId?: unknown;
  readonly error?: unknown;
}

/** The verdict on a request that held these entries. */
export function judge(answer: Answer, entries: readonly Entry[]): Verdict {
  if (answer.status === 200) {
    const results = resultsOf(answer.text, entries);
    if (results === undefined) {
      return { kind: "again", why: "the answer is a 200 but none of StripeMeter's", afterMs: answer.retryAfterMs };
    }
    const errors = entries.flatMap((entry, index) => {
      const why = results[index]?.error;
      return why === undefined ? [] : [rejection(why, answer, [entry])];
    });
    return { kind: "settled", results, errors, whole: false };
  }
  const why = `HTTP ${answer.status}: ${detailOf(answer)}`;
  if (isRetried(answer.status)) return { kind: "again", why, afterMs: answer.retryAfterMs };
  if (SPLIT_STATUSES.includes(answer.status) && entries.length > 1) return { kind: "split" };
  const results = entries.map(({ key }): TrackResult => ({ status: "rejected", idempotencyKey: key, error: why }));
  return { kind: "settled", results, errors: [rejection(why, answer, entries)], whole: true };
}

function rejection(why: string, answer: Answer, entries: readonly Entry[]): StripeMeterError {
  const { status, requestId } = answer;
  return new StripeMeterError("rejected", `not counted: ${why}`, { status, requestId, events: entries.map(eventOf) });
}

/** A result for each entry, or undefined when the text is no such answer. */
function resultsOf(text: string, entries: readonly Entry[]): TrackResult[] | undefined {
  let results: unknown;
  try {
    results = (JSON.parse(text) as { results?: unknown } | null)?.results;
  } catch {
    return undefined;
  }
  if (!Array.isArray(results) || results.length !== entries.length) return undefined;
  const judged: TrackResult[] = [];
  for (const [index, entry] of entries.entries()) {
    const result = resultOf(entry.key, results[index] as Result | null);
    if (result === undefined) return undefined;
    judged.push(result);
  }
  return judged;
}

function resultOf(key: string, result: Result | null): TrackResult | undefined {
  switch (result?.status) {
    case "accepted":
    case "duplicate":
      return {
        status: result.status,
        idempotencyKey: key,
        ...(result.late === true ? { late: true } : {}),
        ...(typeof result.adjustmentId === "string" ? { adjustmentId: result.adjustmentId } : {}),
      };
    case "error":
      return { status: "rejected", idempotencyKey: key, error: String(result.error) };
    default:
      return undefined;
  }
}
