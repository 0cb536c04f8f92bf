/**
 * The same package as CommonJS: compiled against it, not run.
 */
import stripemeter = require("stripemeter-sdk");

const client: stripemeter.StripeMeterClient = stripemeter.createClient({ apiUrl: "http://127.0.0.1:3000", tenantId: "acme" });
export const settled: Promise<boolean> = client.flush({ timeoutMs: 1000 });
