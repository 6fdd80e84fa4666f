-- The queue state of one project, changed atomically by rounds.py.
--
-- KEYS[1]  hash of the project, with the fields below
-- KEYS[2]  progress of the running round
-- KEYS[3]  set of all projects that have a hash
-- ARGV     command, project, rq's job key up to the generation, grace in seconds, then the command's own arguments
--
-- changes / threshold                  changed annotations since the last round, and how many start the next
-- annotations                          how many annotations Label Studio counted in its last event
-- generation                           number of the last requested round
-- waiting[_reason|_at]                 the one round that waits
-- running[_reason|_at|_changes] token  the one round that runs, the changes that it took, and who may publish
-- failures / not_before                rounds failed in a row; before that time changes start no round
-- retry_reason                         what for the last round is tried again at that time; missing: not by itself
-- rerank_failures / rerank_not_before  the same of re-rankings, which nobody but who looks after them asks for again
-- last_error / error_reason            JSON; of the last round, where it failed, and what that was for

local key, command, project, jobs, grace = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6

-- A round that failed comes again after so many seconds, twice as many after each further failure, and so many at most.
local first_pause, longest_pause = 15, 3600
-- Neither learns: they take no changes, and a real round may take their place. One publishes more of the last ranking,
-- the other ranks anew by the last network.
local learns_nothing = {topup = true, rerank = true}

-- Which of two reasons for one round stands: what changed labels call for ends early where no label has changed.
local strength = {topup = 0, rerank = 1, labels = 2, images = 3, connected = 3, forced = 4}

local function get(name)
  return redis.call('HGET', key, name)
end

local function number(name)
  return tonumber(get(name) or 0)
end

local function due()
  -- A failed round gives its changes back: without the pause every further annotation would start it again.
  local threshold = number('threshold')
  return threshold > 0 and number('changes') >= threshold and now >= number('not_before') and 1 or 0
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

local function stronger(reason, other)
  return not other or strength[reason] > strength[other]
end

local function fresh_start()
  redis.call('HDEL', key, 'failures', 'not_before', 'retry_reason')
end

local function pause(name)
  local failures = redis.call('HINCRBY', key, name .. 'failures', 1)
  local seconds = math.min(first_pause * 2 ^ math.min(failures - 1, 30), longest_pause)
  redis.call('HSET', key, name .. 'not_before', string.format('%.3f', now + seconds))
end

local function fail(error, by_itself)
  redis.call('HINCRBY', key, 'rounds_failed', 1)
  local reason = get('running_reason')
  if not learns_nothing[reason] or number('failures') == 0 then
    redis.call('HSET', key, 'last_error', error, 'error_reason', reason)
  end
  if learns_nothing[reason] then
    -- Whoever saw the need for it sees it again; the round that labels earn does not wait for that.
    if reason == 'rerank' then
      pause('rerank_')
    end
    drop_running()
    return
  end
  redis.call('HINCRBY', key, 'changes', number('running_changes'))
  pause('')
  if by_itself then
    redis.call('HSET', key, 'retry_reason', reason)
  else
    redis.call('HDEL', key, 'retry_reason')
  end
  drop_running()
end

local function heal()
  local waiting, running = get('waiting'), get('running')
  if waiting and dead(waiting, number('waiting_at')) then
    -- Nobody else would ask again: what it was asked for may never be told a second time.
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
  -- Not only counted: in an emptied Redis the numbers go on where the clock stands, so that none is given twice.
  local generation = string.format('%.0f', math.max(number('generation') + 1, math.floor(now)))
  redis.call('HSET', key, 'generation', generation, 'waiting', generation, 'waiting_reason', reason, 'waiting_at', now,
    'asked_at', now)
  return {generation, reason}
end

local function take_changes()
  -- On top of what a former run may have left there: this run learns from those annotations as well.
  redis.call('HINCRBY', key, 'running_changes', number('changes'))
  redis.call('HSET', key, 'changes', 0)
  redis.call('HDEL', key, 'retry_reason')
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
  local not_before = reason == 'rerank' and 'rerank_not_before' or 'not_before'
  if only_if_idle == '1' and
    (get('running') or now - number('asked_at') < tonumber(cooldown) or now < number(not_before)) then
    return {}
  end
  if reason ~= 'labels' and not learns_nothing[reason] then
    -- Somebody asked for it, or something new is there.
    fresh_start()
  end
  if get('waiting') then
    if stronger(reason, get('waiting_reason')) then
      redis.call('HSET', key, 'waiting_reason', reason)
    end
    return {}
  end
  return reserve(reason)
end

-- What nobody asks for: the next attempt of a failed round, and a round that changes have earned and whose request was lost.
function commands.tick()
  if get('waiting') then
    return {}
  end
  local again = get('retry_reason')
  if again and now >= number('not_before') then
    redis.call('HDEL', key, 'retry_reason')
    return reserve(again)
  end
  if not get('running') and number('failures') == 0 and due() == 1 then
    return reserve('labels')
  end
  return {}
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
  if not learns_nothing[reason] then
    local again = get('retry_reason')
    if again and stronger(again, reason) then
      reason = again
    end
    take_changes()
  end
  redis.call('HSET', key, 'running', generation, 'running_reason', reason, 'running_at', now, 'token', token)
  redis.call('DEL', KEYS[2])
  return {number('running_changes'), reason}
end

-- A re-ranking that cannot be made goes on as a round that learns; from here on it counts, ends and comes again as one.
function commands.learn(token, reason)
  if get('token') == token and learns_nothing[get('running_reason')] then
    redis.call('HSET', key, 'running_reason', reason)
    take_changes()
  end
  return number('running_changes')
end

function commands.settle(token, error, by_itself)
  if get('token') ~= token then
    return 0
  end
  if error ~= '' then
    fail(error, by_itself == '1')
  elseif learns_nothing[get('running_reason')] then
    -- What a round failed of stays until a round has come to its end.
    if get('error_reason') == get('running_reason') then
      redis.call('HDEL', key, 'last_error', 'error_reason')
    end
    if get('running_reason') == 'rerank' then
      redis.call('HDEL', key, 'rerank_failures', 'rerank_not_before')
    end
    drop_running()
  else
    redis.call('HINCRBY', key, 'rounds_finished', 1)
    redis.call('HDEL', key, 'last_error', 'error_reason', 'rerank_failures', 'rerank_not_before')
    fresh_start()
    drop_running()
  end
  return due()
end

function commands.abandon(generation, error)
  if get('running') ~= generation then
    return 0
  end
  fail(error, true)
  return due()
end

function commands.state()
  return redis.call('HGETALL', key)
end

-- A run that claims, learns or settles is alive, whatever rq says about its job.
if command ~= 'claim' and command ~= 'learn' and command ~= 'settle' and command ~= 'abandon' then
  heal()
end
if command == 'record' or command == 'request' then
  redis.call('SADD', KEYS[3], project)
end
return commands[command](unpack(ARGV, 5))
