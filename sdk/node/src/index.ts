/**
 * What the package gives: `createClient`, its types, its error.
 *
 * Rules it keeps: what is not here may change without notice. It must not know anything itself.
 */
export { createClient, StripeMeterClient } from "./client.js";
export type { Quantity } from "./decimals.js";
export { StripeMeterError, type ErrorKind } from "./errors.js";
export type { ClientOptions, SpoolOptions } from "./options.js";
export type * from "./types.js";
