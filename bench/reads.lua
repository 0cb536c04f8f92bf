-- Load for the reading endpoints: GETs of one path, `%d` in it replaced by a customer's number, round and round.
--
-- Arguments after `--`: path (with %d for a customer of seven digits), customers, and optionally an API key.

function init(arguments)
  local customers = tonumber(arguments[2])
  made = {}
  if arguments[3] then
    wrk.headers["Authorization"] = "Bearer " .. arguments[3]
  end
  for number = 0, customers - 1 do
    local path = string.gsub(arguments[1], "%%d", string.format("%07d", number))
    made[number] = wrk.format("GET", path)
  end
  turn = 0
  many = customers
end

function request()
  turn = turn + 1
  return made[turn * 7919 % many]
end

function done(summary, latency, requests)
  io.write(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d,"not_2xx":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max,
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
