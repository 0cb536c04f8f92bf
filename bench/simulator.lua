-- Load for the Stripe simulator: one meter event a request, each under an identifier and key of its own.
--
-- Arguments after `--`: customers, and a word that makes this run's identifiers differ from any other's.

function init(arguments)
  customers = tonumber(arguments[1])
  run = arguments[2]
  headers = {
    ["Authorization"] = "Bearer sk_test_bench",
    ["Content-Type"] = "application/x-www-form-urlencoded",
  }
  turn = 0
end

function request()
  turn = turn + 1
  local identifier = run .. turn
  headers["Idempotency-Key"] = identifier .. ":0"
  return wrk.format("POST", "/v1/billing/meter_events", headers, string.format(
    "event_name=calls&identifier=%s&payload[value]=1&payload[stripe_customer_id]=cus_%d", identifier, turn % customers))
end

function done(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d,"not_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
