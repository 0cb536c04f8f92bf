/**
 * One file of a spool, and how many of its events are not settled.
 *
 * Rules it keeps: the file goes when all of its events are settled and no more will come; while it is written it is emptied
 * instead. A write that failed leaves no half line behind. It must not know who writes or reads it.
 */
import { closeSync, fsync, fsyncSync, ftruncateSync, openSync, rmdirSync, unlinkSync, writeSync } from "node:fs";
import type { Kept } from "./event.js";

/** A file of events. `failed` is told of an error of the disk. */
export class Segment implements Kept {
  readonly path: string;
  readonly #directory: string;
  readonly #failed: (error: unknown) => void;
  #fd: number | undefined;
  #bytes = 0;
  #unsettled = 0;
  #unsynced = false;

  /** A new file to write to, or (`lines` given) one that was found and holds so many events. Throws if it can't be opened. */
  constructor(directory: string, path: string, failed: (error: unknown) => void, lines?: number) {
    this.#directory = directory;
    this.path = path;
    this.#failed = failed;
    if (lines === undefined) this.#fd = openSync(path, "ax", 0o600);
    else this.#unsettled = lines;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Write these bytes, which are `count` lines, whole. Throws when the disk does not take them; then none of them is there. */
  append(data: Uint8Array, count: number, durable: boolean): void {
    if (this.#fd === undefined) throw new Error("the file is closed");
    try {
      const written = writeSync(this.#fd, data);
      if (written !== data.length) throw new Error(`the disk took ${written} of ${data.length} bytes`);
      if (durable) fsyncSync(this.#fd);
    } catch (error) {
      ftruncateSync(this.#fd, this.#bytes);
      throw error;
    }
    this.#bytes += data.length;
    this.#unsettled += count;
    this.#unsynced = !durable;
  }

  /** Have the disk take what was written since the last time, without waiting for it. */
  sync(): void {
    if (this.#fd === undefined || !this.#unsynced) return;
    this.#unsynced = false;
    fsync(this.#fd, (error) => {
      if (error !== null) this.#failed(error);
    });
  }

  /** No more lines will come. */
  seal(): void {
    const fd = this.#fd;
    if (fd === undefined) return;
    this.#fd = undefined;
    if (this.#unsynced && this.#unsettled > 0) {
      fsync(fd, () => this.#attempt(() => closeSync(fd)));
    } else this.#attempt(() => closeSync(fd));
    if (this.#unsettled === 0) this.#remove();
  }

  /** One of its events needs it no more. */
  settle(): void {
    this.#unsettled -= 1;
    if (this.#unsettled > 0) return;
    const fd = this.#fd;
    if (fd === undefined) {
      this.#remove();
      return;
    }
    this.#attempt(() => ftruncateSync(fd, 0));
    this.#bytes = 0;
  }

  #remove(): void {
    this.#attempt(() => unlinkSync(this.path));
    try {
      rmdirSync(this.#directory);
    } catch {
      // Other files are in it, or it is being written to.
    }
  }

  #attempt(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.#failed(error);
    }
  }
}
