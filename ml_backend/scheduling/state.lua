-- The rounds of one project in Redis, changed atomically. Which round is needed is decided in policy.py; queue.py puts
-- its table `rules` (reason -> strength, trains, ends_pause), its pauses, and rq's keys in front of this text.
--
-- KEYS[1]  hash of the project, with the fields below
-- KEYS[2]  progress of the running round
-- KEYS[3]  set of all projects that have a hash
-- ARGV     command, project, rq's job id up to the generation, grace in seconds, then the command's own arguments
--
-- changes / threshold                  changed annotations since the last round, and how many start the next
-- annotations                          number of annotations in Label Studio's last event
-- generation                           number of the last requested round
-- waiting[_reason|_at]                 the one round that waits
-- popped_at                            when the queue was first seen without the job of a round that nobody has begun
-- running[_reason|_at|_changes] token  the one round that runs, the changes that it took, and the run that may publish
-- failures / not_before                failed rounds in a row; before that time changes start no round
-- retry_reason                         of the failed round that is retried at that time; missing: it is not retried
-- rerank_failures / rerank_not_before  the same for re-rankings, which only the reconciler requests again
-- last_error / error_reason            JSON; of the last round, if it failed, and that round's reason

local key, command, project, jobs, grace = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

local function get(name)
  return redis.call('HGET', key, name)
end

local function number(name)
  return tonumber(get(name) or 0)
end

local function state()
  local fields = redis.call('HGETALL', key)
  fields[#fields + 1] = 'read_at'
  fields[#fields + 1] = string.format('%.6f', now)
  return fields
end

local function status_of(generation)
  return redis.call('HGET', rq_job .. jobs .. generation, 'status')
end

local function dead(generation, since)
  local status = status_of(generation)
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

local function stronger(reason, other)
  return not other or rules[reason].strength > rules[other].strength
end

local function end_pause()
  redis.call('HDEL', key, 'failures', 'not_before', 'retry_reason')
end

local function pause(name)
  local failures = redis.call('HINCRBY', key, name .. 'failures', 1)
  local seconds = math.min(first_pause * 2 ^ math.min(failures - 1, 30), longest_pause)
  redis.call('HSET', key, name .. 'not_before', string.format('%.3f', now + seconds))
end

local function fail(error, retry)
  redis.call('HINCRBY', key, 'rounds_failed', 1)
  local reason = get('running_reason')
  local trains = rules[reason].trains
  if trains or number('failures') == 0 then
    redis.call('HSET', key, 'last_error', error, 'error_reason', reason)
  end
  if trains then
    redis.call('HINCRBY', key, 'changes', number('running_changes'))
    pause('')
    if retry then
      redis.call('HSET', key, 'retry_reason', reason)
    else
      redis.call('HDEL', key, 'retry_reason')
    end
  elseif reason == 'rerank' then
    -- Its failure does not delay the round that labels start.
    pause('rerank_')
  end
  drop_running()
end

local function popped(generation)
  return generation and status_of(generation) == 'queued' and not redis.call('LPOS', rq_queue, jobs .. generation)
end

-- rq forgets a job whose worker was killed between taking it from the queue and beginning it.
local function return_popped_job(waiting, running)
  local generation = popped(waiting) and waiting or popped(running) and running
  if generation and not get('popped_at') then
    redis.call('HSET', key, 'popped_at', now)
  elseif generation and now - number('popped_at') > grace then
    -- The lost worker's execution would expire while the job runs elsewhere, and rq would queue the job once more.
    local execution = jobs .. generation .. ':'
    for _, member in ipairs(redis.call('ZRANGE', rq_started, 0, -1)) do
      if member:sub(1, #execution) == execution then
        redis.call('ZREM', rq_started, member)
      end
    end
    redis.call('LPUSH', rq_queue, jobs .. generation)
    redis.call('HDEL', key, 'popped_at')
  elseif not generation then
    redis.call('HDEL', key, 'popped_at')
  end
end

local function heal()
  local waiting, running = get('waiting'), get('running')
  return_popped_job(waiting, running)
  if waiting and dead(waiting, number('waiting_at')) then
    -- Its event may never be sent again.
    if stronger(get('waiting_reason'), get('retry_reason')) then
      redis.call('HSET', key, 'retry_reason', get('waiting_reason'))
    end
    drop_waiting()
  end
  if running and dead(running, number('running_at')) then
    fail(cjson.encode({kind = 'WorkerLost', at = now, message = 'the worker was stopped or lost in the middle of the round'}), true)
  end
end

local function reserve(reason)
  -- At least the time: in an emptied Redis too, no number is given twice.
  local generation = string.format('%.0f', math.max(number('generation') + 1, math.floor(now)))
  redis.call('HSET', key, 'generation', generation, 'waiting', generation, 'waiting_reason', reason, 'waiting_at', now,
    'asked_at', now)
  return {generation, reason}
end

local function take_changes()
  -- In addition to those of a former run of this round, which this run learns from as well.
  redis.call('HINCRBY', key, 'running_changes', number('changes'))
  redis.call('HSET', key, 'changes', 0)
  redis.call('HDEL', key, 'retry_reason')
end

-- One round waits at most, for the strongest of the reasons that were given.
local function wait_for(reason)
  if not get('waiting') then
    return reserve(reason)
  end
  if stronger(reason, get('waiting_reason')) then
    redis.call('HSET', key, 'waiting_reason', reason)
  end
  return {}
end

local commands = {}

function commands.record(changes, threshold, annotations)
  redis.call('HINCRBY', key, 'changes', changes)
  if threshold ~= '' then
    redis.call('HSET', key, 'threshold', threshold)
  end
  if annotations ~= '' then
    redis.call('HSET', key, 'annotations', annotations)
  end
  return state()
end

function commands.request(reason, only_if_idle, cooldown)
  local not_before = reason == 'rerank' and 'rerank_not_before' or 'not_before'
  if only_if_idle == '1' and
    (get('running') or now - number('asked_at') < tonumber(cooldown) or now < number(not_before)) then
    return {}
  end
  if rules[reason].ends_pause then
    end_pause()
  end
  return wait_for(reason)
end

-- Requests a round that is due in the state last read, unless another client has requested one since.
function commands.request_due(reason, generation, retry_reason)
  if get('waiting') or number('generation') ~= tonumber(generation) or (get('retry_reason') or '') ~= retry_reason then
    return {}
  end
  redis.call('HDEL', key, 'retry_reason')
  return reserve(reason)
end

function commands.claim(generation, token)
  local reason
  if get('waiting') == generation then
    reason = get('waiting_reason')
    drop_waiting()
  elseif get('running') == generation then
    reason = get('running_reason')
  else
    return {}
  end
  if rules[reason].trains then
    local retry = get('retry_reason')
    if retry and stronger(retry, reason) then
      reason = retry
    end
    take_changes()
  end
  redis.call('HSET', key, 'running', generation, 'running_reason', reason, 'running_at', now, 'token', token)
  redis.call('DEL', KEYS[2])
  return {number('running_changes'), reason}
end

-- A re-ranking that needs a training becomes a round that trains: it takes changes, and fails and ends as one.
function commands.train(token, reason)
  if get('token') == token and not rules[get('running_reason')].trains then
    redis.call('HSET', key, 'running_reason', reason)
    take_changes()
  end
  return number('running_changes')
end

function commands.settle(token, error, retry)
  if get('token') ~= token then
    return {}
  end
  local reason = get('running_reason')
  if error ~= '' then
    fail(error, retry == '1')
    return state()
  end
  if rules[reason].trains then
    redis.call('HINCRBY', key, 'rounds_finished', 1)
    redis.call('HDEL', key, 'last_error', 'error_reason')
    end_pause()
  elseif get('error_reason') == reason then
    -- The error of a round that trains stays until such a round is published.
    redis.call('HDEL', key, 'last_error', 'error_reason')
  end
  if reason ~= 'topup' then
    redis.call('HDEL', key, 'rerank_failures', 'rerank_not_before')
  end
  drop_running()
  return state()
end

-- Ends a run whose worker stops: the round waits for any worker, without a failure and without a pause.
function commands.give_back(token)
  if get('token') ~= token then
    return {}
  end
  local reason = get('running_reason')
  redis.call('HINCRBY', key, 'changes', number('running_changes'))
  drop_running()
  return wait_for(reason)
end

function commands.abandon(generation, error)
  if get('running') == generation then
    fail(error, true)
  end
end

function commands.state()
  return state()
end

-- A run that claims, trains, settles or is given back is alive, even if rq has given its job up.
local of_a_run = {claim = true, train = true, settle = true, give_back = true, abandon = true}
if not of_a_run[command] then
  heal()
end
if command == 'record' or command == 'request' then
  redis.call('SADD', KEYS[3], project)
end
return commands[command](unpack(ARGV, 5))
