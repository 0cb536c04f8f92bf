/**
 * Whose a spool's directory is: each client has one of its own, and takes over those of clients that are gone.
 *
 * Rules it keeps: a directory's name says which process owns it, so that owning, giving up and taking over are each one
 * `rename`, which only one can win; a directory of a live process is never touched. A process is told from a later one
 * with the same number (in containers it is always 1) by its start time and the machine's boot. Not a lock file: between
 * making one and writing a number into it, a crash or a second process finds half of it. It must not know events.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync } from "node:fs";
import { join } from "node:path";

const OWNED = /^owned-([0-9a-f]+)-(\d+)-(\d+)-[0-9a-f]+$/;
const FREE = /^free-[0-9a-f]+$/;
/** Taken over at one start; the rest at the next ones. */
const TAKEN_MAX = 1000;

/** Make a directory for this client under `root`; its path. Throws what the file system says. */
export function makeOwned(root: string): string {
  mkdirSync(root, { recursive: true, mode: 0o700 });
  const path = join(root, ownName());
  mkdirSync(path, { mode: 0o700 });
  return path;
}

/** Take over the directories whose owners are gone; their new paths, the oldest name first. */
export function takeOver(root: string): string[] {
  const found = readdirSync(root, { withFileTypes: true }).filter((entry) => entry.isDirectory() && isLeft(entry.name));
  const taken: string[] = [];
  for (const { name } of found.slice(0, TAKEN_MAX)) {
    const path = join(root, ownName());
    try {
      renameSync(join(root, name), path);
    } catch {
      continue; // another process was faster
    }
    taken.push(path);
  }
  return taken;
}

/** Give up a directory: removed if it is empty, else the next client takes it over. Throws what the file system says. */
export function giveUp(root: string, path: string): void {
  if (readdirSync(path, { withFileTypes: true }).length === 0) rmdirSync(path);
  else renameSync(path, join(root, `free-${randomBytes(8).toString("hex")}`));
}

function ownName(): string {
  return `owned-${bootName()}-${process.pid}-${startedAt(process.pid)}-${randomBytes(8).toString("hex")}`;
}

function isLeft(name: string): boolean {
  if (FREE.test(name)) return true;
  const owned = OWNED.exec(name);
  if (owned === null) return false;
  const [, boot, pid, started] = owned;
  return boot !== bootName() || !isAlive(Number(pid)) || startedAt(Number(pid)) !== started;
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    // Of another user: alive.
    return (error as { code?: unknown }).code === "EPERM";
  }
}

/** Some digits of the boot's id; 0 where there is none (then only the process number tells). */
function bootName(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").slice(0, 8);
  } catch {
    return "0";
  }
}

/** When a process started, in ticks since boot (proc(5), field 22); 0 where that can't be asked. */
function startedAt(pid: number): string {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field is the program's name in parentheses, and may hold anything.
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? "0";
  } catch {
    return "0";
  }
}
