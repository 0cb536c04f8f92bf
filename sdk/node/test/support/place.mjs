/**
 * The place of the conformance tests: a real server behind a fault proxy (sdk/conformance/place.py), and how to direct it.
 *
 * Rules it keeps: whatever a test does, the place is gone afterwards (it ends when our end of its input does); totals
 * are asked of the server, past the proxy. It must not know the client.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../../", import.meta.url));
const script = `${root}sdk/conformance/place.py`;

/** The Python that has the server's dependencies. */
function python() {
  const venv = `${root}.venv/bin/python`;
  return process.env.STRIPEMETER_PYTHON ?? (existsSync(venv) ? venv : "python3");
}

/** Start a place. `settings`: of the server, such as `STRIPEMETER_MAX_BATCH=10`. */
export async function startPlace(...settings) {
  const child = spawn(python(), [script, ...settings], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout });
  const [line] = await Promise.race([
    once(lines, "line"),
    once(child, "exit").then(([code]) => {
      throw new Error(`the place ended with ${code}`);
    }),
  ]);
  return new Place(child, JSON.parse(line));
}

class Place {
  #child;

  constructor(child, { server, proxy, control }) {
    this.#child = child;
    this.server = server;
    this.proxy = proxy;
    this.control = control;
  }

  async stop() {
    this.#child.stdin.end();
    if (this.#child.exitCode === null) await once(this.#child, "exit");
  }

  async #direct(method, path, body) {
    const response = await fetch(`${this.control}${path}`, { method, body: body && JSON.stringify(body) });
    if (response.status !== 200) throw new Error(`${method} ${path}: ${await response.text()}`);
    return response.json();
  }

  faults(list) {
    return this.#direct("POST", "/faults", list);
  }

  storm(seed, share, kinds) {
    return this.#direct("POST", "/faults/random", { seed, share, kinds });
  }

  calm() {
    return this.#direct("DELETE", "/faults");
  }

  seen() {
    return this.#direct("GET", "/seen");
  }

  forget() {
    return this.#direct("DELETE", "/seen");
  }

  /** Metric to total, of a customer, as the server has it. */
  async totals(tenantId, customerRef) {
    const query = new URLSearchParams({ tenantId, customerRef, numbers: "string" });
    const response = await fetch(`${this.server}/v1/usage/current?${query}`);
    if (response.status !== 200) throw new Error(await response.text());
    const { metrics } = await response.json();
    return Object.fromEntries(metrics.map(({ name, current }) => [name, current]));
  }
}
