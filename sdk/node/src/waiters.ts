/**
 * Calls that wait until something has come true: a flush until all is settled, a `track` until there is room.
 *
 * Rules it keeps: who came first is asked first; every wait has a bound and can be aborted; nothing is left behind (no timer, no
 * listener). It must not know what is waited for.
 */
import { clearTimeout, setTimeout } from "node:timers";

interface Waiter {
  /** Whether it has come true; may act on it. */
  readonly isMet: () => boolean;
  readonly end: (met: boolean) => void;
}

/** Calls that wait, in order. */
export class Waiters {
  #waiting: Waiter[] = [];

  get length(): number {
    return this.#waiting.length;
  }

  /**
   * True when it has come true, false when that took longer than the milliseconds. Rejects with the signal's reason.
   * A caller waits for it, so it keeps the process alive.
   */
  wait(isMet: () => boolean, timeoutMs: number, signal?: AbortSignal): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
        this.#waiting = this.#waiting.filter((other) => other !== waiter);
      };
      const end = (met: boolean): void => {
        leave();
        resolve(met);
      };
      const aborted = (): void => {
        leave();
        reject(signal?.reason as Error);
      };
      const timer = setTimeout(() => end(false), timeoutMs);
      const waiter = { isMet, end };
      this.#waiting.push(waiter);
      signal?.addEventListener("abort", aborted);
    });
  }

  /** End those for which it has come true, from the first on. `inOrder`: stop at the first for which it has not. */
  check(inOrder: boolean): void {
    for (const waiter of [...this.#waiting]) {
      if (waiter.isMet()) waiter.end(true);
      else if (inOrder) return;
    }
  }

  /** End all: it will not come true. */
  endAll(): void {
    for (const waiter of [...this.#waiting]) waiter.end(false);
  }
}
