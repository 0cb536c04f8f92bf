-- Load for the ingest endpoint: batches of events with unique keys, or every second one a key sent before.
--
-- Arguments after `--`: run (makes the keys of this run its own), batch, "unique" or "half", customers, metrics,
-- and optionally an API key.
-- A key fixes the whole event, so that sending it again is a duplicate and not a reused key. One wrk thread makes
-- about a million events a second: everything that does not change from event to event is made once.

local threads_made = 0

function setup(thread)
  thread:set("thread_number", threads_made)
  threads_made = threads_made + 1
end

function init(arguments)
  local run = arguments[1]
  batch = tonumber(arguments[2])
  half = arguments[3] == "half"
  customers = tonumber(arguments[4])
  metrics = tonumber(arguments[5])
  local second = os.date("!%Y-%m-%dT%H:%M:%S")
  heads = {}
  for customer = 0, customers - 1 do
    local quantity = customer % 3 == 0 and "0.25" or tostring(customer % 97 + 1)
    heads[customer] = string.format(
      '{"tenantId":"bench","metric":"metric-%d","customerRef":"customer-%07d","quantity":%s,"ts":"%s.',
      customer % metrics, customer, quantity, second)
  end
  tails = {}
  for millisecond = 0, 999 do
    tails[millisecond] = string.format('%03dZ","idempotencyKey":"%s-%d-', millisecond, run, thread_number)
  end
  sent = 0
  turn = 0
  pieces = {}
  math.randomseed(thread_number + 1)
  wrk.method = "POST"
  wrk.path = "/v1/events/ingest"
  wrk.headers["Content-Type"] = "application/json"
  if arguments[6] then
    wrk.headers["Authorization"] = "Bearer " .. arguments[6]
  end
end

function request()
  local at = 1
  pieces[1] = '{"events":['
  for index = 1, batch do
    local key
    turn = turn + 1
    if half and turn % 2 == 0 then
      key = math.random(sent)
    else
      sent = sent + 1
      key = sent
    end
    pieces[at + 1] = heads[key * 7919 % customers]
    pieces[at + 2] = tails[key % 1000]
    pieces[at + 3] = key
    pieces[at + 4] = index < batch and '"},' or '"}]}'
    at = at + 4
  end
  return wrk.format(nil, nil, nil, table.concat(pieces, "", 1, at))
end

function done(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d,"not_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
