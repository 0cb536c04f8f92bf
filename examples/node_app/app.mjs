/**
 * A web server whose requests are usage: one event for each answer below 500. Node alone, and the SDK.
 */
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { createClient } from "stripemeter-sdk";

const { values } = parseArgs({ options: { port: { type: "string", default: "3001" } } });

const meter = createClient({
  apiUrl: process.env.STRIPEMETER_URL ?? "http://127.0.0.1:3000",
  tenantId: "acme",
  apiKey: process.env.STRIPEMETER_API_KEY,
  onError: (error) => console.error("metering:", error.message),
});

/** Whose request it is: here a header; in your product the session. Undefined: it is not metered. */
function customerOf(request) {
  return request.headers["x-customer"];
}

const server = createServer((request, response) => {
  response.once("finish", () => {
    const customerRef = customerOf(request);
    if (customerRef === undefined || response.statusCode >= 500) return;
    // Not awaited: in buffered mode it neither throws nor waits for the network.
    void meter.track({ metric: "requests", customerRef, quantity: 1, meta: { status: response.statusCode } });
  });
  response.end("hello\n");
});

server.listen(Number(values.port), "127.0.0.1");

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.once(signal, () => {
    // No more requests; then what waits is sent, and nothing holds the process any longer.
    server.close(() => void meter.close());
    server.closeIdleConnections();
  });
}
