/**
 * The end of the process: what waits is sent first, with a bound, or told.
 *
 * Rules it keeps: a client holds the process only while events wait, and no longer than it says; one listener each for
 * all clients, and none while nothing waits. Signals are the app's own business: a default SIGTERM ends a process without a
 * word, and only a spool survives it. It must not know what waits.
 */

/** Something that must be done before the process ends. */
export interface Pending {
  /** Called when nothing else keeps the process. Resolves within a bound, with everything sent or given up. */
  finish(): Promise<unknown>;
  /** Called when the process ends regardless (`process.exit`, an uncaught exception). Must not wait. */
  lastWords(): void;
}

const pending = new Set<Pending>();
const finishing = new Set<Pending>();

/** Have the process wait for this one. */
export function hold(one: Pending): void {
  if (pending.size === 0) {
    process.on("beforeExit", finishAll);
    process.on("exit", sayLastWords);
  }
  pending.add(one);
}

/** Nothing waits there any more. */
export function release(one: Pending): void {
  if (!pending.delete(one) || pending.size > 0) return;
  process.off("beforeExit", finishAll);
  process.off("exit", sayLastWords);
}

function finishAll(): void {
  for (const one of pending) {
    if (finishing.has(one)) continue;
    finishing.add(one);
    void one.finish().finally(() => {
      finishing.delete(one);
      release(one);
    });
  }
}

function sayLastWords(): void {
  for (const one of pending) one.lastWords();
}
