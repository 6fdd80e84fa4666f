-- The queue state of one project, changed atomically by rounds.py.
--
-- KEYS[1]  hash of the project, with the fields below
-- KEYS[2]  progress of the running round
-- ARGV     command, rq's job key up to the generation, grace in seconds, then the command's own arguments
--
-- changes / threshold / failures       changed annotations since the last round, how many start the next, rounds failed in a row
-- annotations                          how many annotations Label Studio counted in its last event
-- generation                           number of the last requested round
-- waiting[_reason|_at]                 the one round that waits
-- running[_reason|_at|_changes] token  the one round that runs, the changes that it took, and who may publish
-- last_error                           JSON; of the last round, where it failed

local key, command, jobs, grace = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function get(name)
  return redis.call('HGET', key, name)
end

local function number(name)
  return tonumber(get(name) or 0)
end

-- However often rounds have failed: once the cause is mended, labels must start one again.
local most_patience = 4

local function due()
  local threshold = number('threshold')
  -- A failed round gives its changes back: without the raised bar every further annotation would start it again.
  return threshold > 0 and number('changes') >= threshold * (1 + math.min(number('failures'), most_patience)) and 1 or 0
end

local function dead(generation, since)
  local status = redis.call('HGET', jobs .. generation, 'status')
  if not status then
    -- Reserved, and not enqueued yet: another client is between the two.
    return now - since > grace
  end
  return status == 'failed' or status == 'stopped' or status == 'canceled' or status == 'finished'
end

local function drop_waiting()
  redis.call('HDEL', key, 'waiting', 'waiting_reason', 'waiting_at')
end

local function drop_running()
  redis.call('HDEL', key, 'running', 'running_reason', 'running_at', 'running_changes', 'token')
  redis.call('DEL', KEYS[2])
end

local function fail(error)
  redis.call('HINCRBY', key, 'changes', number('running_changes'))
  redis.call('HINCRBY', key, 'failures', 1)
  redis.call('HINCRBY', key, 'rounds_failed', 1)
  redis.call('HSET', key, 'last_error', error)
  drop_running()
end

local function heal()
  local waiting, running = get('waiting'), get('running')
  if waiting and dead(waiting, number('waiting_at')) then
    drop_waiting()
  end
  if running and dead(running, number('running_at')) then
    fail(cjson.encode({kind = 'WorkerLost', at = now, message = 'the worker was stopped or lost in the middle of the round'}))
  end
end

local commands = {}

function commands.record(changes, threshold, annotations)
  local before = number('threshold')
  redis.call('HINCRBY', key, 'changes', changes)
  if threshold ~= '' then
    redis.call('HSET', key, 'threshold', threshold)
  end
  if annotations ~= '' then
    redis.call('HSET', key, 'annotations', annotations)
  end
  return {number('changes'), due(), before}
end

function commands.request(reason, only_if_idle, cooldown)
  if get('waiting') then
    return 0
  end
  if only_if_idle == '1' and (get('running') or now - number('asked_at') < tonumber(cooldown)) then
    return 0
  end
  if reason ~= 'labels' then
    -- Somebody asked for it, or something new is there: a fresh start.
    redis.call('HDEL', key, 'failures')
  end
  local generation = redis.call('HINCRBY', key, 'generation', 1)
  redis.call('HSET', key, 'waiting', generation, 'waiting_reason', reason, 'waiting_at', now, 'asked_at', now)
  return generation
end

function commands.claim(generation, token, reason)
  if get('waiting') == generation then
    drop_waiting()
  elseif get('running') ~= generation then
    return -1
  end
  -- On top of what a former run may have left there: this run learns from those annotations as well.
  redis.call('HINCRBY', key, 'running_changes', number('changes'))
  redis.call('HSET', key, 'changes', 0, 'running', generation, 'running_reason', reason, 'running_at', now, 'token', token)
  redis.call('DEL', KEYS[2])
  return number('running_changes')
end

function commands.settle(token, error)
  if get('token') ~= token then
    return -1
  end
  if error ~= '' then
    fail(error)
  else
    redis.call('HINCRBY', key, 'rounds_finished', 1)
    redis.call('HDEL', key, 'last_error', 'failures')
    drop_running()
  end
  return due()
end

function commands.abandon(generation, error)
  if get('running') ~= generation then
    return -1
  end
  fail(error)
  return due()
end

function commands.state()
  return redis.call('HGETALL', key)
end

-- A run that claims or settles is alive, whatever rq says about its job.
if command ~= 'claim' and command ~= 'settle' and command ~= 'abandon' then
  heal()
end
return commands[command](unpack(ARGV, 4))
