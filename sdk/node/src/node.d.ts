/**
 * The parts of Node that the SDK uses, declared here: the build needs the compiler alone, and users need no @types/node.
 *
 * Rules it keeps: only what is used, only what Node 18 has; nothing of it appears in the published types. Whether it
 * is true is held by the tests, which run on the real Node. It must not know the SDK.
 */

declare module "node:crypto" {
  export function randomBytes(size: number): NodeBytes;
  export function createHash(name: string): { update(text: string): { digest(encoding: "hex"): string } };
}

declare module "node:fs" {
  export interface Entry {
    name: string;
    isDirectory(): boolean;
    isFile(): boolean;
  }
  export function openSync(path: string, flags: string, mode?: number): number;
  export function closeSync(fd: number): void;
  export function writeSync(fd: number, data: string | Uint8Array): number;
  export function fsyncSync(fd: number): void;
  export function fsync(fd: number, done: (error: Error | null) => void): void;
  export function ftruncateSync(fd: number, size: number): void;
  export function mkdirSync(path: string, options: { recursive?: boolean; mode?: number }): void;
  export function readdirSync(path: string, options: { withFileTypes: true }): Entry[];
  export function readFileSync(path: string): NodeBytes;
  export function readFileSync(path: string, encoding: "utf8"): string;
  export function appendFileSync(path: string, data: string | Uint8Array, options: { mode: number }): void;
  export function renameSync(from: string, to: string): void;
  export function rmdirSync(path: string): void;
  export function unlinkSync(path: string): void;
  export function statSync(path: string): { size: number };
}

declare module "node:path" {
  export function join(...parts: string[]): string;
}

declare module "node:timers" {
  export interface Timer {
    ref(): Timer;
    unref(): Timer;
  }
  export function setTimeout(callback: () => void, milliseconds: number): Timer;
  export function clearTimeout(timer: Timer | undefined): void;
  export function setImmediate(callback: () => void): unknown;
}

declare const process: {
  readonly pid: number;
  kill(pid: number, signal: 0): true;
  on(event: "beforeExit" | "exit", listener: (code: number) => void): unknown;
  off(event: "beforeExit" | "exit", listener: (code: number) => void): unknown;
  emitWarning(warning: string, options: { type: string; code: string }): void;
};

interface NodeBytes extends Uint8Array {
  toString(encoding?: "hex" | "base64url" | "utf8" | "latin1", start?: number, end?: number): string;
}

declare const Buffer: {
  from(text: string, encoding?: "utf8"): NodeBytes;
  byteLength(text: string): number;
  concat(parts: readonly Uint8Array[]): NodeBytes;
};
