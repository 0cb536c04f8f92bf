/**
 * When it is tried again, and after how long.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { isRetried, Pause, retryAfterMs, waitMs } from "../dist/esm/retry.js";

const PACE = { retryMsFirst: 100, retryMsMax: 3000 };

test("408, 425, 429 and every 5xx are tried again, nothing else", () => {
  const retried = Array.from({ length: 600 }, (_, status) => status).filter(isRetried);
  assert.deepEqual(retried, [408, 425, 429, ...Array.from({ length: 100 }, (_, index) => 500 + index)]);
});

test("waits double up to the most, with jitter down to a half", () => {
  for (let attempt = 1; attempt < 2000; attempt += 1) {
    const most = Math.min(100 * 2 ** Math.min(attempt - 1, 20), 3000);
    assert.equal(waitMs(PACE, attempt, undefined, 0), most / 2);
    assert.ok(waitMs(PACE, attempt, undefined, 0.999) < most && waitMs(PACE, attempt, undefined, 0.999) > most * 0.99);
  }
});

test("Retry-After is the least, also above the most", () => {
  for (const random of [0, 0.5, 0.999]) {
    const wait = waitMs(PACE, 1, 20_000, random);
    assert.ok(wait >= 20_000 && wait < 22_000);
    assert.ok(waitMs(PACE, 9, 1, random) >= 1500);
  }
});

test("Retry-After is seconds or a date; anything else is passed over", () => {
  const now = Date.UTC(1994, 10, 6, 8, 49, 30);
  assert.equal(retryAfterMs("3", now), 3000);
  assert.equal(retryAfterMs(" 0 ", now), 0);
  assert.equal(retryAfterMs("Sun, 06 Nov 1994 08:49:37 GMT", now), 7000);
  assert.equal(retryAfterMs("Sun, 06 Nov 1994 08:00:00 GMT", now), 0, "in the past");
  assert.equal(retryAfterMs("99999999", now), 600_000, "capped");
  for (const strange of [null, "", "soon", "-3", "1.5", "1e9", "99999999999", "Sun, 99 Nov 1994 08:49:37 GMT"]) {
    assert.equal(retryAfterMs(strange, now), undefined, String(strange));
  }
});

test("a wait can be cut, but neither before its least time nor where the server asked for it", async () => {
  const waited = async (cuttable, leastMs) => {
    const pause = new Pause();
    const began = performance.now();
    const done = pause.wait(200, true, cuttable, undefined);
    pause.cut(leastMs);
    await done;
    return performance.now() - began;
  };
  assert.ok((await waited(true, 0)) < 150);
  const least = await waited(true, 60);
  assert.ok(least >= 58 && least < 190, `${least} ms`);
  assert.ok((await waited(false, 0)) >= 195);
});

test("a wait ends with its signal, and leaves no listener", async () => {
  const abort = new AbortController();
  const done = new Pause().wait(60_000, true, true, abort.signal);
  abort.abort(new Error("enough"));
  await assert.rejects(done, /enough/);
  await assert.rejects(new Pause().wait(1, true, true, abort.signal), /enough/);
});
