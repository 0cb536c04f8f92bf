/**
 * Questions to the server: usage, history, projection, events.
 *
 * Rules it keeps: quantities and money come as decimal strings (`numbers=string`), so that no digit is lost; a question is asked again
 * when there was no answer, with a bound; another tenant is never asked for. It must not know queues.
 */
import { StripeMeterError } from "./errors.js";
import { detailOf, NoAnswer, type Answer, type Http } from "./http.js";
import type { Settings } from "./options.js";
import { isRetried, Pause, waitMs } from "./retry.js";

/** Values of a query; those that are undefined are left out. */
export type Parameters = Readonly<Record<string, Date | number | string | undefined>>;

/** Asks one server. */
export class Reads {
  readonly #http: Http;
  readonly #settings: Settings;
  readonly #random: () => number;

  constructor(http: Http, settings: Settings, random: () => number) {
    this.#http = http;
    this.#settings = settings;
    this.#random = random;
  }

  /** The answer to a GET. Throws StripeMeterError, or the signal's reason. */
  get(path: string, parameters: Parameters, signal: AbortSignal | undefined): Promise<unknown> {
    return this.#ask("GET", path, { tenantId: this.#settings.tenantId, ...parameters }, undefined, signal);
  }

  /** The answer to a POST that changes nothing. Throws StripeMeterError, or the signal's reason. */
  post(path: string, body: Parameters, signal: AbortSignal | undefined): Promise<unknown> {
    const text = JSON.stringify({ tenantId: this.#settings.tenantId, ...body });
    return this.#ask("POST", path, {}, text, signal);
  }

  async #ask(
    method: "GET" | "POST",
    path: string,
    parameters: Parameters,
    body: string | undefined,
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    const target = `${path}?${queryOf({ ...parameters, numbers: "string" })}`;
    for (let attempt = 1; ; attempt += 1) {
      const answer = await this.#http.send(method, target, body, signal).catch((error: unknown) => {
        if (error instanceof NoAnswer) return error;
        throw error;
      });
      if (!(answer instanceof NoAnswer) && !isRetried(answer.status)) return contentOf(answer);
      if (attempt >= this.#settings.attemptsMax) {
        const why = answer instanceof NoAnswer ? answer.message : `HTTP ${answer.status}: ${detailOf(answer)}`;
        throw new StripeMeterError("unavailable", `gave up after ${attempt} attempts; ask again later. Last: ${why}`);
      }
      const afterMs = answer instanceof NoAnswer ? undefined : answer.retryAfterMs;
      await new Pause().wait(waitMs(this.#settings, attempt, afterMs, this.#random()), true, false, signal);
    }
  }
}

function queryOf(parameters: Parameters): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined) query.set(name, value instanceof Date ? value.toISOString() : String(value));
  }
  return query.toString();
}

function contentOf(answer: Answer): unknown {
  const { status, requestId } = answer;
  if (status !== 200) {
    throw new StripeMeterError("rejected", `HTTP ${status}: ${detailOf(answer)}`, { status, requestId });
  }
  try {
    return JSON.parse(answer.text);
  } catch (cause) {
    throw new StripeMeterError("rejected", "the answer is no JSON: is apiUrl StripeMeter's address?", { status, requestId, cause });
  }
}
