/**
 * Every direct case of sdk/conformance/cases.json against the real server through the fault proxy. A file for each mode, so
 * that they run side by side: most of their time is waiting.
 */
import { conformance } from "./support/cases.mjs";

conformance("direct");
