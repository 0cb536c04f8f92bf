/**
 * Exact quantities: from what an app has (number, bigint, text) to the plain decimal that is sent.
 *
 * Rules it keeps: nothing is rounded and nothing is calculated; a number is taken by its shortest form, which is what
 * the source code says (0.1 is 0.1); what the server would refuse is refused here, with the same words. It must not
 * know what is counted.
 */

/** A quantity: not negative, below 10^15, at most 6 digits after the point. */
export type Quantity = number | bigint | string;

const FRACTION_DIGITS_MAX = 6;
const INTEGER_DIGITS_MAX = 15;
const LIMIT = 10 ** INTEGER_DIGITS_MAX;
const TEXT_CHARS_MAX = 64;
// RFC 8259, section 6: no plus sign, no leading zero, no bare point.
const NUMBER = /^(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?$/;

/** Why a value is no quantity; completes the sentence "quantity ...". */
export class QuantityError extends Error {}

/** The plain decimal text of a quantity. Throws QuantityError. */
export function quantityText(quantity: unknown): string {
  if (typeof quantity === "number") {
    if (Number.isInteger(quantity) && quantity >= 0 && quantity < LIMIT) return `${quantity}`;
    if (!Number.isFinite(quantity)) throw new QuantityError(`must be a finite number, not ${quantity}`);
    const text = `${quantity}`;
    // From a thousandth on, and below the limit, JavaScript writes no exponent: most fractions end here.
    const fractionDigits = text.length - text.indexOf(".") - 1;
    return quantity >= 0.001 && quantity < LIMIT && fractionDigits <= FRACTION_DIGITS_MAX ? text : plain(text);
  }
  if (typeof quantity === "bigint") return plain(String(quantity));
  if (typeof quantity === "string") return plain(quantity);
  throw new QuantityError("must be a number, a bigint, or a decimal string such as \"12.5\"");
}

/** A written number without its exponent; digits are counted as the server counts them: after the exponent moved the point. */
function plain(text: string): string {
  if (text.length > TEXT_CHARS_MAX) throw new QuantityError(`is longer than ${TEXT_CHARS_MAX} characters`);
  const found = NUMBER.exec(text);
  if (found === null) throw new QuantityError("must be a plain decimal, such as \"12.5\"");
  const [, sign, whole = "", fraction = "", exponentText] = found;
  const exponent = Number(exponentText ?? "0");
  const digits = whole + fraction;
  const zero = /^0+$/.test(digits);
  if (sign === "-" && !zero) throw new QuantityError("must not be negative");
  if (fraction.length - exponent > FRACTION_DIGITS_MAX) {
    throw new QuantityError(
      `has more than ${FRACTION_DIGITS_MAX} digits after the decimal point: round it yourself, or count in a smaller unit`,
    );
  }
  if (zero) return "0";
  const point = whole.length + exponent;
  if (point - leadingZeros(digits) > INTEGER_DIGITS_MAX) {
    throw new QuantityError(`must be below 10^${INTEGER_DIGITS_MAX}: count in a larger unit, or send several events`);
  }
  if (exponent === 0) return fraction === "" ? whole : `${whole}.${fraction}`;
  return moved(digits, point);
}

function leadingZeros(digits: string): number {
  return digits.length - digits.replace(/^0+/, "").length;
}

/** `digits` with the decimal point after the first `point` of them. */
function moved(digits: string, point: number): string {
  const padded = point <= 0 ? "0".repeat(1 - point) + digits : digits.padEnd(point, "0");
  const at = Math.max(point, 1);
  const whole = padded.slice(0, at).replace(/^0+(?=.)/, "");
  const fraction = padded.slice(at);
  return fraction === "" ? whole : `${whole}.${fraction}`;
}
