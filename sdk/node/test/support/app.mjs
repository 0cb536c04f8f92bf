/**
 * An app that meters, as a process of its own: what it does is its first argument, its client's options the second.
 *
 * Rules it keeps: it says on standard output, a line each, what a test must know; it ends by itself where a test
 * does not kill it. It must not know the test.
 */
import { writeSync } from "node:fs";
import { createClient } from "../../dist/esm/index.js";

const [, , deed, given] = process.argv;
const client = createClient({
  ...JSON.parse(given),
  onError: (error, event) => say(`told ${error.kind} ${event?.idempotencyKey ?? "-"}`),
});
const CALL = { metric: "calls", customerRef: "cora", quantity: 1 };

/** At once, also where the process ends in the same breath. */
function say(text) {
  writeSync(1, `${text}\n`);
}

const DEEDS = {
  /** Ends with three events in the queue, and calls nothing. */
  async end() {
    for (let call = 0; call < 3; call += 1) void client.track(CALL);
  },
  /** Has sent all, and calls nothing. */
  async idle() {
    void client.track(CALL);
    say(`flushed ${await client.flush()}`);
  },
  /** Never uses its client. */
  async nothing() {
    say("nothing");
  },
  /** Ends at once, with three events in the queue. */
  async exit() {
    for (let call = 0; call < 3; call += 1) void client.track({ ...CALL, idempotencyKey: `k${call}` });
    process.exit(7);
  },
  /** Tracks until it is killed; says how many calls have returned. */
  async track() {
    for (let count = 1; ; count += 1) {
      void client.track({ ...CALL, idempotencyKey: `${process.pid}-${count}` });
      say(`tracked ${count}`);
      if (count % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    }
  },
  /** What docs/sdk-node.md advises for SIGTERM. */
  async server() {
    const timer = setInterval(() => undefined, 1000);
    process.once("SIGTERM", async () => {
      clearInterval(timer);
      say(`closed ${await client.close()}`);
    });
    void client.track(CALL);
    say("ready");
  },
};

await DEEDS[deed]();
