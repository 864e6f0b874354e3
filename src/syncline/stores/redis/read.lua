-- Reads rows by their ids, all in one moment: their entries, and what each of their data keys holds.
--
-- ARGV[1] is the head, ARGV[2] the columns: ids, then for each thing that a row writes its keys (and members). With
-- head.lives also which rows (by number) live otherwise than they should: for ever where their mapping gives a time to
-- live, or, where the head says that nothing may vanish, for a while.
local head, data = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
local ids = data[1]
local answer = {redis.call('HGET', head.table, 'works'), {}}
local odd = {}

for first = 1, #ids, 4000 do
  local found = redis.call('HMGET', head.rows, unpack(ids, first, math.min(first + 3999, #ids)))
  for i = 1, #found do
    answer[2][first + i - 1] = found[i]
  end
end

-- Keys of another type than ours hold nothing of ours.
local function ask(...)
  local found = redis.pcall(...)
  if type(found) == 'table' and found.err then
    return false
  end
  return found
end

local function lives(key, write)
  local left = redis.call('PTTL', key)
  return left == -2 or (write.ttl > 0 and left >= 0) or (write.ttl == 0 and (left == -1 or not head.stays))
end

local at = 2
for w, write in ipairs(head.writes) do
  local found = {}
  for i = 1, #ids do
    local entry = answer[2][i]
    found[i] = false
    if entry and write.kind == 'hash' then
      found[i] = ask('HMGET', data[at][i], unpack(write.fields))
    elseif entry and write.kind == 'document' then
      found[i] = ask('GET', data[at][i])
    elseif entry then
      local place = data[at][i]
      if write.wanders then
        local blank = string.find(entry, ' ', 1, true)
        place = blank and cmsgpack.unpack(string.sub(entry, blank + 1))[w]
      end
      found[i] = {place or false, place and ask('ZSCORE', place, data[at + 1][i]) or false}
    end
    if head.lives and entry and write.ttl and not lives(data[at][i], write) then
      odd[#odd + 1] = i
    end
  end
  answer[#answer + 1] = found
  at = at + (write.kind == 'members' and 2 or 1)
end
answer[#answer + 1] = odd
return answer
