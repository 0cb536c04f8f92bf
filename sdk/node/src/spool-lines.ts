/**
 * The lines of a spool's files: a checksum, a blank, the event's JSON.
 *
 * Rules it keeps: a line that was cut or changed is found by its CRC-32; a last line without its end was never promised
 * to anybody. Pure. It must not know files.
 */
import type { Entry } from "./event.js";

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});
const CRC_CHARS = 8;
const NEWLINE = 0x0a;
const HEX = "0123456789abcdef";

/** CRC-32 of `bytes[start..end)`, as in zlib, which has it only from Node 20.15 on. */
export function crc32(bytes: Uint8Array, start: number, end: number): number {
  let crc = 0xffffffff;
  // An index loop: this is on the path of `track`, and an iterator costs five times as much.
  for (let at = start; at < end; at += 1) {
    crc = (TABLE[(crc ^ (bytes[at] as number)) & 0xff] as number) ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

/** The line of an event's JSON, with its end. */
export function spoolLine(json: string): NodeBytes {
  const line = Buffer.from(`00000000 ${json}\n`);
  let crc = crc32(line, CRC_CHARS + 1, line.length - 1);
  for (let at = CRC_CHARS - 1; at >= 0; at -= 1, crc >>>= 4) line[at] = HEX.charCodeAt(crc & 15);
  return line;
}

/** What a file holds: whole events in order, and the lines that are damaged, as they are. */
export interface SpoolContent {
  readonly entries: Entry[];
  readonly damaged: NodeBytes[];
}

/** Read a file's bytes. A last line that was cut short is passed over: its `track` never returned. */
export function readLines(bytes: NodeBytes): SpoolContent {
  const entries: Entry[] = [];
  const damaged: NodeBytes[] = [];
  let start = 0;
  for (let end = bytes.indexOf(NEWLINE); end !== -1; end = bytes.indexOf(NEWLINE, start)) {
    const line = bytes.subarray(start, end) as NodeBytes;
    const entry = entryOf(line);
    if (entry === undefined) damaged.push(line);
    else entries.push(entry);
    start = end + 1;
  }
  return { entries, damaged };
}

function entryOf(line: NodeBytes): Entry | undefined {
  const json = line.subarray(CRC_CHARS + 1) as NodeBytes;
  const crc = crc32(json, 0, json.length).toString(16).padStart(CRC_CHARS, "0");
  if (line.toString("latin1", 0, CRC_CHARS + 1) !== `${crc} `) return undefined;
  const text = json.toString("utf8");
  try {
    const key = (JSON.parse(text) as { idempotencyKey?: unknown } | null)?.idempotencyKey;
    return typeof key === "string" ? { key, line: text, bytes: json.length, kept: undefined } : undefined;
  } catch {
    return undefined;
  }
}
