/**
 * One request to StripeMeter over `fetch`: its answer, or that there was none.
 *
 * Rules it keeps: every request has a time limit that covers the answer's last byte, and an answer's size a bound;
 * redirects are not followed (they would carry the API key elsewhere and lose a POST's body); the key is in no message.
 * It must not know what is asked, nor try again.
 */
import { clearTimeout, setTimeout } from "node:timers";
import { messageOf } from "./errors.js";
import { retryAfterMs } from "./retry.js";
import type { Settings } from "./options.js";

/** An answer, whatever its status. */
export interface Answer {
  readonly status: number;
  readonly text: string;
  readonly requestId: string | undefined;
  readonly retryAfterMs: number | undefined;
}

/** No whole answer came: whether the server did what was asked is unknown. */
export class NoAnswer extends Error {}

const ANSWER_BYTES_MAX = 64 << 20;
const USER_AGENT = "stripemeter-node/0.1.0";

/** The way to one server. */
export class Http {
  readonly #settings: Settings;
  readonly #headers: Readonly<Record<string, string>>;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#headers = {
      accept: "application/json",
      "user-agent": USER_AGENT,
      ...(settings.apiKey === undefined ? {} : { authorization: `Bearer ${settings.apiKey}` }),
    };
  }

  /** The answer. Throws NoAnswer, or the signal's reason when that aborts. `path` begins with a slash. */
  async send(method: "GET" | "POST", path: string, body: string | undefined, signal?: AbortSignal): Promise<Answer> {
    signal?.throwIfAborted();
    const { apiUrl, timeoutMs, fetch } = this.#settings;
    const limit = new AbortController();
    // The request itself keeps the process alive; its timer must not do so beyond it.
    const timer = setTimeout(() => limit.abort(new NoAnswer(`no answer within ${timeoutMs} ms`)), timeoutMs).unref();
    const passOn = (): void => limit.abort(signal?.reason);
    signal?.addEventListener("abort", passOn);
    try {
      const response = await fetch(`${apiUrl}${path}`, {
        method,
        headers: body === undefined ? this.#headers : { ...this.#headers, "content-type": "application/json" },
        redirect: "manual",
        signal: limit.signal,
        ...(body === undefined ? {} : { body }),
      });
      return {
        status: response.status,
        text: await textOf(response),
        requestId: response.headers.get("x-request-id") ?? undefined,
        retryAfterMs: retryAfterMs(response.headers.get("retry-after"), Date.now()),
      };
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof NoAnswer) throw error;
      throw new NoAnswer(`no answer from ${apiUrl}: ${messageOf(error)}`, { cause: error });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", passOn);
    }
  }
}

/** The whole body. Throws when it is cut, or larger than any answer. */
async function textOf(response: Response): Promise<string> {
  if (response.body === null) return "";
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  let bytes = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    bytes += value.byteLength;
    if (bytes > ANSWER_BYTES_MAX) {
      await reader.cancel();
      throw new NoAnswer(`the answer is larger than ${ANSWER_BYTES_MAX} bytes`);
    }
    text += decoder.decode(value, { stream: true });
  }
}

/** The detail of a problem (RFC 9457), else what there is, shortened. */
export function detailOf(answer: Answer): string {
  try {
    const detail = (JSON.parse(answer.text) as { detail?: unknown } | null)?.detail;
    if (typeof detail === "string") return detail;
  } catch {
    // No JSON: some proxy's page. Its beginning says more than nothing.
  }
  return answer.text.slice(0, 200);
}
