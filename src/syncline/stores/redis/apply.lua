-- Applies one work: the version guard, the rows and the cursor, all or nothing.
--
-- ARGV[1] is the head, ARGV[2..] the chunks, in MessagePack; writing.py builds both. A chunk holds columns: ids, entries
-- (or versions), then for each thing that a row writes its keys and values. Everything that can be refused is looked at
-- before the first write, because a script is never rolled back.
local head = cmsgpack.unpack(ARGV[1])
local call, pcall_ = redis.call, redis.pcall

-- Is this the data that we left behind? After FLUSHALL, a restart without the data or a failover to an older copy it is
-- not, and rows without those before them would be a gap that nobody sees.
if call('HGET', head.store, 'id') ~= head.id then
  return {'lost', 0}
end
local cursor = call('HGET', head.cursors, head.source) or ''
local known = false
for _, expected in ipairs(head.expected) do
  known = known or expected == cursor
end
if not known then
  return {'moved', cursor}
end

local tables = head.tables
for _, t in ipairs(tables) do
  local state = call('HMGET', t.table, 'fingerprint', 'highest', 'truncated', 'horizon', 'works')
  if state[1] ~= t.fingerprint then
    return {'unprepared', t.name}
  end
  t.highest = tonumber(state[2])
  t.truncated = math.max(tonumber(state[3]), t.truncate)
  t.horizon = tonumber(state[4])
  t.work = state[5]
  -- Guarantee 5, without asking the guard where it can only say yes: nothing that was ever here is newer.
  t.guarded = t.lowest < math.max(t.highest, t.truncated, t.horizon)
end

local function version(entry)
  return entry and (tonumber(entry) or tonumber(string.match(entry, '^%d+')))
end

local function tail(entry)
  local place = entry and string.find(entry, ' ', 1, true)
  return place and cmsgpack.unpack(string.sub(entry, place + 1)) or {}
end

local function wins(t, incoming, stored, buried)
  if incoming < t.truncated or incoming < (buried or 0) then
    return false
  end
  if stored and stored > t.truncate then
    return stored <= incoming
  end
  return incoming >= t.horizon
end

-- The key's length, 0 if it is not there, nil if it is of another type: somebody else's, and never touched.
local function length(command, key)
  local found = pcall_(command, key)
  if type(found) == 'number' then
    return found
  end
  return nil
end

local LENGTH = {hash = 'HLEN', document = 'STRLEN', members = 'ZCARD'}

-- ------------------------------------------------------------------------------------------------------------- look

local refused, chunks, sets = {}, {}, {}
for number, plan in ipairs(head.chunks) do
  local t = tables[plan.table]
  local c = {plan = plan, t = t, data = cmsgpack.unpack(ARGV[number + 1]), win = {}, size = {}, leave = {}}
  chunks[number] = c
  local ids, entries = c.data[1], c.data[2]
  local stored, buried
  if t.guarded or t.wandering or plan.kind == 'patch' or plan.kind == 'remove' then
    stored = call('HMGET', t.rows, unpack(ids))
    c.stored = stored
  end
  if t.guarded and plan.kind ~= 'remove' then
    buried = call('HMGET', t.dead, unpack(ids))
  end
  for i = 1, #ids do
    if plan.kind == 'remove' then
      c.win[i] = stored[i] and version(stored[i]) <= tonumber(entries[i])
    elseif plan.kind == 'patch' and not stored[i] then
      c.win[i] = false
    else
      c.win[i] = not t.guarded
        or wins(t, version(entries[i]), stored[i] and version(stored[i]), buried[i] and tonumber(buried[i]))
    end
  end
  if plan.kind == 'upsert' or plan.kind == 'patch' then
    local at = 3
    for w, write in ipairs(t.writes) do
      local keys, command = c.data[at], LENGTH[write.kind]
      c.size[w] = {}
      for i = 1, #ids do
        local key = keys[i]
        if c.win[i] and key then
          local size = write.kind == 'members' and sets[key]
          if not size then
            size = length(command, key)
            if size and write.kind == 'members' then
              sets[key] = size
            end
          end
          if not size then
            refused[#refused + 1] = {number, i, w}
          elseif size == 0 and plan.kind == 'patch' then
            return {'expired', t.name}
          end
          c.size[w][i] = size
        end
      end
      at = at + write.width
    end
  end
end
if #refused > 0 then
  return {'refused', refused}
end

-- What applications edit too is never taken away to be put back: the edit would be lost with what it rests on.
for _, c in ipairs(chunks) do
  if c.t.base ~= '' and c.plan.kind ~= 'remove' and c.plan.kind ~= 'delete' then
    c.t.again = c.t.again or {}
    for i, id in ipairs(c.data[1]) do
      c.t.again[id] = c.t.again[id] or c.win[i]
    end
  end
end
for _, c in ipairs(chunks) do
  if c.t.again and c.plan.kind == 'remove' then
    for i, id in ipairs(c.data[1]) do
      c.win[i] = c.win[i] and not c.t.again[id]
    end
  end
end

-- ------------------------------------------------------------------------------------------------------------ write

-- A key that has a time to live keeps it; one without gets the mapping's.
local function live(key, write)
  if write.anew then
    call('PERSIST', key)
  end
  if write.ttl > 0 and call('PTTL', key) == -1 then
    call('EXPIRE', key, write.ttl)
  end
end

-- A table that applications edit too (t.base is not ''; docs/both-ways.md): what stands there is compared with what was
-- last written, and with what comes. c.leave[i]: the row stays as it is. What comes back to where it began is never
-- written over what stands there, but for a row that lost here (flag f) against a change that lost in its turn.
local overruled = 0

local function same(one, other)
  for n = 1, #one do
    if one[n] ~= other[n] then
      return false
    end
  end
  return true
end

local function values_in(kept, fields)
  local found = {}
  for f = 1, #fields do
    found[f] = kept and kept.h[fields[f]] or false
  end
  return found
end

-- Whether the row stays, and its flag. ``known``: the row was written here before.
local function judge(now, was, wanted, flag, known)
  if same(now, wanted) then
    return true, flag and not head.echo
  end
  if head.echo then
    return not (flag and same(now, was)), flag
  end
  if same(now, was) then
    return false, flag
  end
  if known and same(was, wanted) then  -- read again, or set to what it was: the edit rests on that, and is accepted
    return true, flag
  end
  overruled = overruled + 1
  return false, true
end

local function meet(c)
  local gone = c.plan.kind == 'remove' or c.plan.kind == 'delete'
  local ids, keys, fields, bases = c.data[1], c.data[3], c.t.writes[1].fields, {}
  local kept = call('HMGET', c.t.base, unpack(ids))
  for i = 1, #ids do
    if c.win[i] then
      local base = kept[i] and cjson.decode(kept[i])
      local now, was, wanted, held = call('HMGET', keys[i], unpack(fields)), values_in(base, fields), {}, {}
      for f = 1, #fields do
        local value = not gone and c.data[3 + f][i]
        if value == false and not gone then  -- not carried: it is what it was
          value = base and was[f] or now[f]
        end
        wanted[f] = value or false
        held[fields[f]] = value or nil
      end
      local flag
      c.leave[i], flag = judge(now, was, wanted, base and base.f or false, base)
      if not gone then
        if not c.leave[i] then  -- an edit is overruled in every field
          for f = 1, #fields do
            c.data[3 + f][i] = wanted[f] or nil
          end
        end
        bases[#bases + 1] = ids[i]
        local at = string.match(c.data[2][i], '^%d+') .. '.' .. c.t.work
        bases[#bases + 1] = cjson.encode({v = at, f = flag, h = held})
      else
        -- One that came and went would not have been here for whoever looks. A deletion leaves a tombstone that says
        -- when; of those that go together none does, and the table says it for all.
        if c.plan.kind == 'remove' then
          call('HSET', c.t.table, 'gone', c.data[2][i] .. '.' .. c.t.work)
        end
        call('HDEL', c.t.base, ids[i])
      end
    end
  end
  if #bases > 0 then
    call('HSET', c.t.base, unpack(bases))
  end
end

local arguments = {}  -- one table for all rows: growing a new one for each costs more than the rest

local function put_hash(c, w, write, at)
  local keys, fields, gone, size = c.data[at], write.fields, write.gone, c.size[w]
  local columns = {unpack(c.data, at + 1, at + #fields)}
  for i = 1, #keys do
    if c.win[i] and not c.leave[i] then
      local n, nulls = 0, nil
      for f = 1, #fields do
        local value = columns[f][i]
        if value then
          arguments[n + 1], arguments[n + 2] = fields[f], value
          n = n + 2
        elseif value == nil and size[i] > 0 then
          nulls = nulls or {unpack(gone)}
          nulls[#nulls + 1] = fields[f]
        end
      end
      if n > 0 then
        call('HSET', keys[i], unpack(arguments, 1, n))
      end
      if nulls or (#gone > 0 and size[i] > 0) then
        call('HDEL', keys[i], unpack(nulls or gone))
      end
      live(keys[i], write)
    end
  end
end

local function put_document(c, w, write, at)
  local keys, values = c.data[at], c.data[at + 1]
  for i = 1, #keys do
    if c.win[i] then
      call('SET', keys[i], values[i], 'KEEPTTL')
      live(keys[i], write)
    end
  end
end

local function place_before(c, w, write, i, fixed)
  if write.wanders then
    return tail(c.stored[i])[w]
  end
  return fixed
end

local function put_members(c, w, write, at)
  local keys, members, scores = c.data[at], c.data[at + 1], c.data[at + 2]
  for i = 1, #members do
    if c.win[i] then
      local before, now = place_before(c, w, write, i, keys[i]), scores[i] and keys[i]
      if before and before ~= now then
        pcall_('ZREM', before, members[i])
      end
      if now then
        call('ZADD', now, scores[i], members[i])
      end
    end
  end
end

local PUT = {hash = put_hash, document = put_document, members = put_members}

local function take_away(c, i)
  local at = 3
  for w, write in ipairs(c.t.writes) do
    if write.kind == 'members' then
      local place = place_before(c, w, write, i, c.data[at][i])
      if place then
        pcall_('ZREM', place, c.data[at + 1][i])
      end
      at = at + 2
    else
      local key = c.data[at][i]
      if (length(LENGTH[write.kind], key) or 0) > 0 then
        call('UNLINK', key)
      end
      at = at + 1
    end
  end
end

local function each(command, key, arguments)
  for first = 1, #arguments, 4000 do
    call(command, key, unpack(arguments, first, math.min(first + 3999, #arguments)))
  end
end

local function bury(c)
  local ids, versions, tombstones, gone = c.data[1], c.data[2], {}, {}
  for i = 1, #ids do
    if c.win[i] then
      if not c.leave[i] then
        take_away(c, i)
      end
      gone[#gone + 1] = ids[i]
      tombstones[#tombstones + 1] = ids[i]
      tombstones[#tombstones + 1] = versions[i]
    end
  end
  each('HDEL', c.t.rows, gone)
  if c.plan.kind == 'delete' then
    each('HSET', c.t.dead, tombstones)
  end
end

local function put(c)
  local at = 3
  for w, write in ipairs(c.t.writes) do
    PUT[write.kind](c, w, write, at)
    at = at + write.width
  end
  local ids, entries, written, ours, moved = c.data[1], c.data[2], {}, {}, {}
  for i = 1, #ids do
    if c.win[i] then
      ours[#ours + 1] = ids[i]
      written[#written + 1] = ids[i]
      written[#written + 1] = entries[i]
      local move = c.plan.moves and c.data[at][i]
      if move then
        moved[#moved + 1] = move
        moved[#moved + 1] = version(entries[i])
      end
    end
  end
  each('HSET', c.t.rows, written)
  each('HSET', c.t.moved, moved)
  if call('EXISTS', c.t.dead) == 1 then
    each('HDEL', c.t.dead, ours)
  end
end

for _, c in ipairs(chunks) do
  if c.t.base ~= '' then
    meet(c)
  end
  if c.plan.kind == 'remove' or c.plan.kind == 'delete' then
    bury(c)
  else
    put(c)
  end
end
for _, t in ipairs(tables) do
  local highest = math.max(t.highest, t.greatest, t.truncated)
  call('HSET', t.table, 'highest', string.format('%.0f', highest), 'truncated', string.format('%.0f', t.truncated))
  call('HINCRBY', t.table, 'works', 1)
end
if head.cursor then
  call('HSET', head.cursors, head.source, head.cursor)
end
return {'done', overruled}
