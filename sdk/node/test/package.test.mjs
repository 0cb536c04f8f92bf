/**
 * The package as it is published: what is in it, both module systems, types, no dependencies.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));

describe("package", () => {
  let directory;
  let files;
  before(() => {
    directory = mkdtempSync(join(tmpdir(), "stripemeter-package-"));
    // Without scripts: a build would take dist from under the tests that run beside this one.
    const packed = execFileSync("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", directory], { cwd: root });
    const [{ filename, files: listed }] = JSON.parse(packed);
    files = listed.map(({ path }) => path).sort();
    execFileSync("tar", ["-xzf", filename], { cwd: directory });
    mkdirSync(join(directory, "node_modules"));
    cpSync(join(directory, "package"), join(directory, "node_modules", manifest.name), { recursive: true });
  });
  after(() => rmSync(directory, { recursive: true, force: true }));

  const node = (...args) => execFileSync(process.execPath, args, { cwd: directory, encoding: "utf8" });

  it("holds what was built, the manual, and nothing else", () => {
    assert.deepEqual(files.filter((path) => !path.startsWith("dist/")), ["README.md", "package.json"]);
    const wrong = files.filter((path) => path.startsWith("dist/") && !/^dist\/(esm|cjs)\/([a-z-]+\.(js|d\.ts)|package\.json)$/.test(path));
    assert.deepEqual(wrong, []);
    for (const kind of ["esm", "cjs"]) assert.ok(files.includes(`dist/${kind}/index.d.ts`));
  });

  it("has no dependencies at run time", () => {
    assert.deepEqual([manifest.dependencies, manifest.optionalDependencies, manifest.peerDependencies], [undefined, undefined, undefined]);
    const lock = readFileSync(join(root, "package-lock.json"), "utf8");
    assert.equal(lock.includes("://"), false, "no address of a registry");
  });

  it("is imported and required, with the same names", () => {
    const names = '"StripeMeterClient,StripeMeterError,createClient"';
    const print = "console.log(JSON.stringify(Object.keys(sdk).filter((name) => name !== '__esModule').sort().join()))";
    assert.equal(node("--input-type=module", "-e", `import * as sdk from "${manifest.name}"; ${print}`).trim(), names);
    assert.equal(node("--input-type=commonjs", "-e", `const sdk = require("${manifest.name}"); ${print}`).trim(), names);
  });

  it("tracks an event from CommonJS", () => {
    const code = `
      const { createClient } = require("${manifest.name}");
      const fetch = async (url, { body }) => {
        console.log(JSON.parse(body).events.length);
        return new Response(JSON.stringify({ results: [{ status: "accepted" }] }));
      };
      const spool = { path: "spool", sync: "always" };
      createClient({ apiUrl: "http://x", tenantId: "t", fetch, spool }).track({ metric: "m", customerRef: "c", quantity: 1 });`;
    assert.equal(node("-e", code).trim(), "1");
  });

  it("has types for both module systems, which need no others", () => {
    const compiler = createRequire(import.meta.url).resolve("typescript/bin/tsc");
    for (const name of ["sample.mts", "sample.cts"]) cpSync(join(root, "test/types", name), join(directory, name));
    const compilerOptions = { strict: true, noEmit: true, target: "es2022", lib: ["es2022", "dom"], module: "nodenext", types: [] };
    writeFileSync(join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["sample.mts", "sample.cts"] }));
    assert.equal(node(compiler, "-p", "tsconfig.json"), "");
  });
});
