/**
 * Idempotency keys: one for each call of `track`, made once and kept over all retries.
 *
 * Rules it keeps: no two calls get the same key, in any process, on any machine, after any fork: 96 random bits for
 * each client and a counter. A random key for every event would cost more than all else in `track`. It must not know events.
 */
import { randomBytes } from "node:crypto";

const RANDOM_BYTES = 12;

/** A source of keys, each about 20 characters of letters, digits, `-` and `_`. */
export function keySource(): () => string {
  const prefix = `n${randomBytes(RANDOM_BYTES).toString("base64url")}-`;
  let count = 0;
  return () => {
    count += 1;
    return prefix + count.toString(36);
  };
}
