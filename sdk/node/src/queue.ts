/**
 * The events that wait, first in, first out, with bounds.
 *
 * Rules it keeps: bounded in events and bytes; adding and taking cost the same however many wait. It must not know why
 * anything waits, nor what becomes of it.
 */
import type { Entry } from "./event.js";

const COMPACT_FROM = 1024;

/** A bounded queue. */
export class Queue {
  readonly eventsMax: number;
  readonly bytesMax: number;
  #entries: Entry[] = [];
  /** Where the oldest is: shifting an array would move all the others. */
  #head = 0;
  #bytes = 0;

  constructor(eventsMax: number, bytesMax: number) {
    this.eventsMax = eventsMax;
    this.bytesMax = bytesMax;
  }

  get length(): number {
    return this.#entries.length - this.#head;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Whether an event of so many bytes may be added. An empty queue takes any. */
  hasRoom(bytes: number): boolean {
    const { length } = this;
    return length === 0 || (length < this.eventsMax && this.#bytes + bytes <= this.bytesMax);
  }

  push(entry: Entry): void {
    this.#entries.push(entry);
    this.#bytes += entry.bytes;
  }

  /** The oldest, taken out. */
  shift(): Entry | undefined {
    const entry = this.#entries[this.#head];
    if (entry === undefined) return undefined;
    this.#head += 1;
    this.#bytes -= entry.bytes;
    if (this.#head >= COMPACT_FROM && this.#head * 2 >= this.#entries.length) {
      this.#entries = this.#entries.slice(this.#head);
      this.#head = 0;
    }
    return entry;
  }

  /** The oldest, up to these bounds but at least one if there is one, taken out. */
  take(eventsMax: number, bytesMax: number): Entry[] {
    const taken: Entry[] = [];
    let bytes = 0;
    while (taken.length < eventsMax) {
      const next = this.#entries[this.#head];
      if (next === undefined || (taken.length > 0 && bytes + next.bytes > bytesMax)) break;
      bytes += next.bytes + 1;
      taken.push(next);
      this.shift();
    }
    return taken;
  }
}
