/**
 * The spool: events on disk from `track` until the server has them, so that a crash of the app loses nothing.
 *
 * Rules it keeps: an event is written before `track` returns, with one write; a file goes only when all of its events
 * are settled; what a crashed client left is sent again under the same keys; nothing that the disk does reaches the app:
 * it is told once, events go on in memory, and the disk is tried again a second later. What is promised is a crash of the app:
 * the kernel has the bytes. For a power cut there is `sync: "always"`. Files, since Node 18 has no database. It must not know how
 * anything is sent.
 */
import { createHash, randomBytes } from "node:crypto";
import { closeSync, fsyncSync, openSync, readdirSync, readFileSync, renameSync, statSync, appendFileSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { messageOf, StripeMeterError } from "./errors.js";
import type { Entry } from "./event.js";
import { readLines, spoolLine } from "./spool-lines.js";
import { giveUp, makeOwned, takeOver } from "./spool-owner.js";
import { Segment } from "./spool-segment.js";
import type { Tally } from "./tally.js";
import type { Teller } from "./teller.js";

const SEGMENT_BYTES_MAX = 1 << 20;
/** A file of a spool is hardly larger than a segment and a batch; anything else is not ours to read into memory. */
const FOUND_BYTES_MAX = 64 << 20;
const RETRY_EVERY_MS = 1000;
const SEGMENT_FILE = /^\d{10}\.jsonl$/;

/** A file that an earlier client left. */
interface Left {
  readonly directory: string;
  readonly path: string;
}

/** The spool of one client. */
export class Spool {
  /** Of the tenant: a client with another key must not send its events. */
  readonly #root: string;
  readonly #durable: boolean;
  readonly #tally: Tally;
  readonly #teller: Teller;
  readonly #now: () => number;
  #directory: string | undefined;
  #active: Segment | undefined;
  #numbered = 0;
  #retryAtMs = 0;
  #failing = false;
  #left: Left[] = [];
  #taken: string[] = [];

  /** Takes over what clients that are gone left. Never throws. */
  constructor(path: string, sync: "batch" | "always", tenantId: string, tally: Tally, teller: Teller, now: () => number) {
    this.#root = join(path, createHash("sha256").update(tenantId).digest("hex").slice(0, 16));
    this.#durable = sync === "always";
    this.#tally = tally;
    this.#teller = teller;
    this.#now = now;
    this.#guarded(() => {
      this.#directory = makeOwned(this.#root);
      this.#taken = takeOver(this.#root);
      this.#left = this.#taken.flatMap(filesOf);
    });
  }

  /** Whether files of earlier clients are left to be read. */
  get hasBacklog(): boolean {
    return this.#left.length > 0;
  }

  /** Write entries to disk, or tell that it failed. Never throws. */
  keep(entries: readonly Entry[]): void {
    if (this.#failing && this.#now() < this.#retryAtMs) {
      this.#tally.unspooled += entries.length;
      return;
    }
    const kept = this.#guarded(() => {
      const segment = this.#writable();
      const [first] = entries;
      const alone = entries.length === 1 && first !== undefined;
      const lines = alone ? spoolLine(first.line) : Buffer.concat(entries.map((entry) => spoolLine(entry.line)));
      segment.append(lines, entries.length, this.#durable);
      for (const entry of entries) entry.kept = segment;
    });
    if (!kept) this.#tally.unspooled += entries.length;
  }

  /** The events of one file that an earlier client left, taken from the list; undefined when there is none. Never throws. */
  nextBacklog(): Entry[] | undefined {
    for (let left = this.#left.shift(); left !== undefined; left = this.#left.shift()) {
      const entries: Entry[] = [];
      const { directory, path } = left;
      this.#guarded(() => {
        if (statSync(path).size > FOUND_BYTES_MAX) {
          this.#setAside(path);
          return;
        }
        const content = readLines(readFileSync(path));
        if (content.damaged.length > 0) this.#tellDamaged(content.damaged);
        const segment = new Segment(directory, path, this.#failed, content.entries.length + 1);
        for (const entry of content.entries) {
          entry.kept = segment;
          entries.push(entry);
        }
        // The one more stands for the reading itself: a file without a whole event goes at once.
        segment.settle();
      });
      if (entries.length > 0) return entries;
    }
    return undefined;
  }

  /** Have the disk take what was written, in the background. */
  sync(): void {
    this.#active?.sync();
  }

  /** Give everything up that is not settled, for the next client. Never throws. */
  close(): void {
    this.#active?.seal();
    this.#active = undefined;
    const mine = this.#directory === undefined ? [] : [this.#directory];
    this.#directory = undefined;
    for (const path of [...mine, ...this.#taken]) {
      try {
        giveUp(this.#root, path);
      } catch (error) {
        // Its last file went with the last event.
        if ((error as { code?: unknown }).code !== "ENOENT") this.#failed(error);
      }
    }
    this.#taken = [];
    this.#left = [];
  }

  /** The file to write to. Throws what the file system says. */
  #writable(): Segment {
    if (this.#active !== undefined && this.#active.bytes < SEGMENT_BYTES_MAX) return this.#active;
    this.#directory ??= makeOwned(this.#root);
    this.#numbered += 1;
    const path = join(this.#directory, `${String(this.#numbered).padStart(10, "0")}.jsonl`);
    const next = new Segment(this.#directory, path, this.#failed);
    this.#active?.seal();
    this.#active = next;
    if (this.#durable) syncDirectory(this.#directory);
    return next;
  }

  #tellDamaged(lines: readonly Uint8Array[]): void {
    const path = join(this.#root, `damaged-${randomBytes(8).toString("hex")}`);
    for (const line of lines) appendFileSync(path, Buffer.concat([line, Buffer.from("\n")]), { mode: 0o600 });
    this.#teller.tell(new StripeMeterError("spool", `the spool holds ${lines.length} damaged lines; they are set aside in ${path}`));
  }

  #setAside(path: string): void {
    const aside = join(this.#root, `damaged-${randomBytes(8).toString("hex")}`);
    renameSync(path, aside);
    this.#teller.tell(new StripeMeterError("spool", `the spool holds a file that is too large; it is set aside as ${aside}`));
  }

  /** Run it: whether it went well. */
  #guarded(action: () => void): boolean {
    try {
      action();
      this.#failing = false;
      return true;
    } catch (error) {
      this.#failed(error);
      // Whatever state file and directory are in, nothing more is added to them.
      this.#active?.seal();
      this.#active = undefined;
      if (this.#directory !== undefined) this.#taken.push(this.#directory);
      this.#directory = undefined;
      this.#retryAtMs = this.#now() + RETRY_EVERY_MS;
      this.#failing = true;
      return false;
    }
  }

  /** Told once for a whole time of failing. */
  readonly #failed = (error: unknown): void => {
    if (this.#failing) return;
    const message = `the spool in ${this.#root} fails, events go on in memory only: ${messageOf(error)}`;
    this.#teller.tell(new StripeMeterError("spool", message, { cause: error }));
  };
}

/** The files of a directory that was taken over; an empty one is removed. */
function filesOf(directory: string): Left[] {
  const names = readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isFile() && SEGMENT_FILE.test(entry.name));
  if (names.length === 0) {
    try {
      rmdirSync(directory);
    } catch {
      // Something else is in it; it stays.
    }
  }
  return names.map(({ name }) => ({ directory, path: join(directory, name) })).sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** A new file's name is on disk only when its directory is. */
function syncDirectory(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
