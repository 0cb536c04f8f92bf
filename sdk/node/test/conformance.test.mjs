/**
 * Every case of sdk/conformance/cases.json, with this client, against the real server through the fault proxy.
 */
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { runCase } from "./support/cases.mjs";
import { startPlace } from "./support/place.mjs";

const cases = JSON.parse(readFileSync(new URL("../../conformance/cases.json", import.meta.url), "utf8"));

describe("conformance", () => {
  let place;
  before(async () => {
    place = await startPlace();
  });
  after(() => place?.stop());

  for (const [index, one] of cases.entries()) {
    it(one.name, () => runCase(place, one, `node-${index}`));
  }
});
