/**
 * An app in TypeScript as users write it: compiled against the packed package, not run.
 */
import { createClient, StripeMeterError, type ErrorKind, type TrackResult, type Usage } from "stripemeter-sdk";

const client = createClient({
  apiUrl: "http://127.0.0.1:3000",
  tenantId: "acme",
  customerId: "cus_anna",
  apiKey: "sm_key",
  spool: { path: "spool", sync: "always" },
  backpressure: "block",
  onError: (error, event) => console.error(error.kind, error.status, event?.idempotencyKey),
});

export async function meter(signal: AbortSignal): Promise<TrackResult> {
  await client.trackBatch([{ metric: "calls", quantity: "0.1" }], { signal });
  return client.track({ metric: "calls", customerRef: "cora", quantity: 10n, ts: new Date(), meta: { region: "eu" } });
}

export async function read(): Promise<string | undefined> {
  const usage: Usage = await client.getUsage("cora");
  const history = await client.getUsageHistory({ metric: "calls", since: "-PT24H", interval: "hour" });
  const projection = await client.getProjection();
  const { events } = await client.getEvents({ limit: 10 });
  const kind: ErrorKind = new StripeMeterError("closed", "").kind;
  // @ts-expect-error - digits would be lost: quantities are text
  const wrong: number = usage.metrics[0]?.current;
  // @ts-expect-error - a metric is needed
  await client.track({ quantity: 1 });
  return usage.metrics[0]?.current ?? history.totals.value ?? projection.total ?? events[0]?.quantity ?? `${kind}${wrong}`;
}
