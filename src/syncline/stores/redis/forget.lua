-- Forgets entries of a companion hash that still hold what the caller saw: ARGV[1] is its key, ARGV[2] fields and values.
local seen = cmsgpack.unpack(ARGV[2])
local forgotten = 0
for i = 1, #seen[1] do
  if redis.call('HGET', ARGV[1], seen[1][i]) == seen[2][i] then
    forgotten = forgotten + redis.call('HDEL', ARGV[1], seen[1][i])
  end
end
return forgotten
