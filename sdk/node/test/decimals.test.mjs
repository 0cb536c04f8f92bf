/**
 * Quantities: exact or refused, as the server reads them.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { quantityText } from "../dist/esm/decimals.js";
import { seededRandom } from "./support/random.mjs";

const MICROS = 10n ** 6n;

/** Millionths of a plain decimal text, by BigInt: another hand than the code under test. */
function micros(text) {
  const [whole, fraction = ""] = text.split(".");
  assert.match(text, /^(0|[1-9]\d*)(\.\d+)?$/);
  return BigInt(whole) * MICROS + BigInt(fraction.padEnd(6, "0").slice(0, 6));
}

test("what is a quantity comes out as a plain decimal", () => {
  const cases = [
    [0, "0"],
    [-0, "0"],
    [3, "3"],
    [0.1, "0.1"],
    [0.000001, "0.000001"],
    [0.00025, "0.00025"],
    [1e14, "100000000000000"],
    [999999999999999, "999999999999999"],
    [123456.789012, "123456.789012"],
    [999999999999999n, "999999999999999"],
    [0n, "0"],
    ["0.1", "0.1"],
    ["12.50", "12.50"],
    ["999999999999999.999999", "999999999999999.999999"],
    ["1e3", "1000"],
    ["1.5e-3", "0.0015"],
    ["25E+2", "2500"],
    ["1e-6", "0.000001"],
    ["0.000e9", "0"],
    ["-0", "0"],
    ["1200e-2", "12.00"],
    ["0.0012e3", "1.2"],
  ];
  for (const [given, text] of cases) assert.equal(quantityText(given), text, String(given));
});

test("what is no quantity is refused with what to do", () => {
  const finer = /more than 6 digits/;
  const larger = /below 10\^15/;
  const plain = /plain decimal/;
  const cases = [
    ...[[NaN, /finite/], [Infinity, /finite/], [-1, /negative/], [-0.5, /negative/], [1e-7, finer], [0.1 + 0.2, finer]],
    ...[[1e15, larger], [1e21, larger], [1e300, larger], [10n ** 15n, larger], [-1n, /negative/], ["1e15", larger]],
    ...[["", plain], [" 1", plain], ["1,5", plain], ["+1", plain], ["01", plain], [".5", plain], ["5.", plain]],
    ...[["0x10", plain], ["٣", plain], ["1e9999", plain], ["1_000", plain], ["NaN", plain], ["-0.1", /negative/]],
    ...[["0.1234567", finer], ["10e-7", finer], ["1".repeat(65), /longer/], [null, /must be/], [undefined, /must be/]],
    ...[[true, /must be/], [[1], /must be/], [{}, /must be/], [new Number(1), /must be/]],
  ];
  for (const [given, why] of cases) assert.throws(() => quantityText(given), why, String(given));
});

test("random numbers keep their value to the last digit, in every form", () => {
  const { below } = seededRandom("decimals");
  for (let round = 0; round < 5000; round += 1) {
    const digits = 1 + below(15);
    const whole = String(below(10 ** Math.min(digits, 9))) + "7".repeat(Math.max(digits - 9, 0));
    const fraction = String(below(10 ** 6)).padStart(6, "0").slice(0, below(7));
    const text = fraction === "" ? whole : `${whole}.${fraction}`;
    const exact = micros(text.replace(/^0+(?=\d)/, ""));
    assert.equal(micros(quantityText(text.replace(/^0+(?=\d)/, ""))), exact);
    assert.equal(micros(quantityText(`${exact}e-6`)), exact);
    const number = Number(text);
    if (String(number) === text) assert.equal(micros(quantityText(number)), exact);
  }
});
