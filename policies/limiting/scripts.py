"""What Redis does in one step. A counter is a string `used born` in a key of its window, and ends with the window.

`born` tells a counter from a later one of the same name: what a hold gives back never goes to one that was begun anew.
A gauge is a sorted set of names by when their places lapse. A hold is the list of what a name took of which counters;
an empty one is a name that was given up. Who has no name gets the list itself, as a receipt. What is found in a key and
is nothing of that kind counts as lost.
"""

import hashlib


class Script:
    """A script in Lua, which Redis knows by its digest once it was sent."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_COMMON = """
local time = redis.call('TIME')
local now = tonumber(ARGV[1]) or time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[2])

local function count(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' then
    local used, born = string.match(value, '^(%d+) (%d+)$')
    return tonumber(used), born
  end
end

local function write(key, used, born, ...)
  redis.call('SET', key, string.format('%.0f %s', used, born), ...)
end
"""

ADMIT = Script(
    _COMMON
    + """
-- KEYS: the hold, then each claim's counter, then perhaps a stored answer. ARGV: now or nothing, lease, name or
-- nothing, the seal that the answer has to bear or nothing, how many claims there are without it, then of each its
-- period, limit and amount, what the ledger told ('' if it was not asked) and of the window since when ('' if of any).
-- Times are in milliseconds. Returns 0, the number of the first claim refused, or -1; now; the receipt where there is
-- no name; what is used of each counter, or, after -1, the numbers of the claims whose counters the ledger has to
-- tell; and the answer or nothing.
local name, born = ARGV[3], time[1] .. time[2]
local seal, most, stored = ARGV[4], #KEYS - 1, false
if seal ~= '' then
  stored, most = redis.pcall('GET', KEYS[#KEYS]), most - 1
  if type(stored) ~= 'string' or string.sub(stored, 1, #seal) ~= seal then stored, most = false, tonumber(ARGV[5]) end
end
local held = name ~= '' and type(redis.pcall('GET', KEYS[1])) == 'string'
local claims, counters, missing = {}, {}, {}

local function places(key)
  local live = redis.pcall('ZCOUNT', key, '(' .. now, now + 2 * lease)
  if type(live) == 'number' then return live end
  redis.call('DEL', key)
  return 0
end

for i = 1, most do
  local at = 6 + (i - 1) * 5
  local claim = {key = KEYS[i + 1], period = tonumber(ARGV[at]), amount = tonumber(ARGV[at + 2])}
  claim.limit = tonumber(ARGV[at + 1])
  local start = claim.period > 0 and now - now % claim.period
  if start then claim.key = string.format('%s:%.0f', claim.key, start) end
  local counter = counters[claim.key]
  if not counter then
    counter = {taken = 0, fresh = false}
    if start then
      counter.used, counter.born = count(claim.key)
    else
      counter.used = places(claim.key)
    end
    if not counter.used then
      local told, since = ARGV[at + 3], ARGV[at + 4]
      if told == '' or since ~= '' and tonumber(since) ~= start then missing[#missing + 1] = i end
      counter.used, counter.born, counter.fresh = tonumber(told) or 0, born, since ~= ''
    end
    counters[claim.key] = counter
  end
  claim.counter = counter
  claims[i] = claim
end
if #missing > 0 and not held then return {-1, now, '', unpack(missing)} end

local refused = 0
for i, claim in ipairs(claims) do
  local counter = claim.counter
  local fits = held or claim.amount == 0 or claim.amount <= claim.limit - counter.used - counter.taken
  if not fits and refused == 0 then refused = i end
  counter.taken = counter.taken + claim.amount
end

local hold, life = {}, 2 * lease
for i, claim in ipairs(claims) do
  local counter = claim.counter
  local take = not held and refused == 0 and claim.amount > 0
  if claim.period == 0 then
    if take and name ~= '' then
      redis.call('ZREMRANGEBYSCORE', claim.key, '-inf', now)
      redis.call('ZREMRANGEBYSCORE', claim.key, '(' .. now + 2 * lease, '+inf')
      counter.used = counter.used + redis.call('ZADD', claim.key, now + lease, name)
      redis.call('PEXPIRE', claim.key, 2 * lease)
    end
  elseif not held and (take or counter.fresh) then
    local left = claim.period - now % claim.period + lease
    if take then
      counter.used = counter.used + claim.amount
      hold[#hold + 1] = {i, claim.key, counter.born, claim.amount}
      life = math.max(life, left)
    end
    write(claim.key, counter.used, counter.born, 'PX', left)
  end
end
local packed = not held and refused == 0 and cmsgpack.pack(hold) or ''
if name ~= '' and packed ~= '' then redis.call('SET', KEYS[1], packed, 'PX', life) end

local answer = {refused, now, name == '' and packed or ''}
for _, claim in ipairs(claims) do answer[#answer + 1] = claim.counter.used end
if stored and refused == 0 then answer[#answer + 1] = stored end
return answer
"""
)

SETTLE = Script(
    _COMMON
    + """
-- KEYS: the hold, then the gauges. ARGV: now, lease, name, 1 if it is given up, a receipt where there is no name, and
-- what was used of each claim. Of a name given up all goes back, and should its claims come only after this, they are
-- nothing.
local name, given_up = ARGV[3], ARGV[4] == '1'
for i = 2, #KEYS do redis.pcall('ZREM', KEYS[i], name) end
local hold = ARGV[5] ~= '' and ARGV[5] or redis.pcall('GET', KEYS[1])
if type(hold) ~= 'string' then
  if given_up then redis.call('SET', KEYS[1], '', 'PX', lease) end
  return {0}
end
if hold == '' then return {0} end
if name ~= '' then redis.call('DEL', KEYS[1]) end
local whole, parts = pcall(cmsgpack.unpack, hold)
for _, part in ipairs(whole and type(parts) == 'table' and parts or {}) do
  local number, key, born, amount = part[1], part[2], part[3], part[4]
  local used = given_up and 0 or tonumber(ARGV[5 + number] or '') or amount
  local counted, of = count(key)
  if counted and of == born then
    write(key, counted - amount + math.min(math.max(used, 0), amount), born, 'KEEPTTL')
  end
end
return {1}
"""
)

RENEW = Script(
    _COMMON
    + """
-- KEYS: a gauge. ARGV: now, lease, and the names that have places.
if type(redis.pcall('ZCARD', KEYS[1])) ~= 'number' then redis.call('DEL', KEYS[1]) end
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], now + lease, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], 2 * lease)
return {#ARGV - 2}
"""
)
