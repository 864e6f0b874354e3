"""Members of Redis keys against what was last told of them: one run of the source, from its first command to the last
change and the state behind it, in a process of its own.

The runs are those of an engine, with their lock and their records, but nobody logs or applies what they find. The child
(``python -m syncline.bench.redis_diff``) is told a configuration, then a line for each run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import redis

from syncline.bench.accounting import cpu_seconds, forget_peak, peak_rss_bytes
from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.workload import Source
from syncline.embedded import EmbeddedValkey
from syncline.errors import SynclineError, Unavailable

__all__ = ["redis_diff"]

PERIODS = ("daily", "weekly", "monthly", "yearly")
_SLICE = 10_000
# A member is in four leaderboards and has a hash; written within the server, which takes no time of a client.
_PUT = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local member = 'user_' .. string.sub(redis.sha1hex(i), 1, 20)
  for n = 1, 4 do redis.call('ZADD', KEYS[n], (i * 37 + tonumber(ARGV[3])) % 100000 * n, member) end
  redis.call('HSET', 'user:' .. member, 'username', 'name of ' .. i, 'updated_at', '2024-01-15T10:30:00.000Z')
end
"""
_REMOVE = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local member = 'user_' .. string.sub(redis.sha1hex(i), 1, 20)
  for n = 1, 4 do redis.call('ZREM', KEYS[n], member) end
  redis.call('DEL', 'user:' .. member)
end
"""


def redis_diff(members: int, repeat: int, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. The state behind each turn is compared with the scores that were written.

    Raises:
        SynclineError: a run failed, or what it found is wrong.
    """
    with Source.started(folder) as source, EmbeddedValkey.start(source.folder / "valkey") as server:
        config = _config(source, server)
        with redis.Redis.from_url(server.url()) as client:
            board = _Board(client, members)
            with talk.doing(f"writing {members:,} members into Valkey"):
                board.fill()
            with talk.doing("telling them for the first time"), _Child(config) as first:
                first.run()
            found = list(_turns(config, board, server, repeat, talk))
        seconds = [one["seconds"] for one in found]
        return {
            "benchmark": "redis-diff",
            **environment(source),
            "server": f"valkey {_version(server)}",
            "members": members,
            "keys": [*(f"leaderboard:{period}" for period in PERIODS), "user:{member}"],
            "repeat": repeat,
            "seconds": median(seconds),
            "seconds_spread": spread(seconds),
            "members_per_s": round(members / median(seconds, 6)),
            "peak_rss_mb": max(one["peak_rss_bytes"] for one in found) // 2**20,
            "cpu_s": {name: median([one["cpu"][name] for one in found]) for name in ("syncline", "server")},
            "changes": found[-1]["changes"],
            "copy_equal": True,
        }


def _version(server: EmbeddedValkey) -> str:
    """What the server calls itself."""
    with redis.Redis.from_url(server.url()) as client:
        told: Any = client.info("server")
    return str(told.get("valkey_version") or told["redis_version"])


def _turns(
    config: dict[str, Any], board: _Board, server: EmbeddedValkey, repeat: int, talk: Talk
) -> Iterator[dict[str, Any]]:
    with _Child(config) as child:
        with talk.doing("a run that finds nothing, for what is loaded once"):
            child.run()
        for turn in range(repeat):
            expected = board.change(turn)
            with talk.doing(f"comparing, turn {turn + 1} of {repeat}"):
                before = cpu_seconds(server.pid)
                found = child.run()
                found["cpu"]["server"] = cpu_seconds(server.pid) - before
            board.check(found, expected)
            yield found


def _config(source: Source, server: EmbeddedValkey) -> dict[str, Any]:
    scores = {f"{p}_pomo": {"sorted_set": f"leaderboard:{p}", "type": "int4", "default": 0} for p in PERIODS}
    details = {"username": {"hash": "user:{member}"}, "updated_at": {"hash": "user:{member}", "type": "timestamptz"}}
    board = {"type": "redis", "url": server.url(), "table": "pomo_leaderboard", "member": "user_id", "hints": False}
    # Due again as soon as the run before is over: when one begins is up to whoever takes the entries.
    board |= {"columns": {**scores, **details}, "every_s": 1e-6}
    return {
        "sources": {"board": board},
        "control": {"dsn": source.dsn},
        "log": {"path": str(source.folder / "log")},
    }


class _Board:
    """The keys, and what a copy of them must have."""

    def __init__(self, client: redis.Redis, members: int) -> None:
        self._client = client
        self._range = range(members)
        self._put, self._remove = client.register_script(_PUT), client.register_script(_REMOVE)
        self._some = max(1, members // 100)

    def fill(self) -> None:
        """Write all members."""
        self._each(self._put, self._range, 0)

    def change(self, turn: int) -> dict[str, int]:
        """Other scores for a hundredth of the members, a thousandth new, and as many gone; the changes to be found."""
        there, few = self._range, max(1, self._some // 10)
        self._each(self._remove, there[:few])
        self._range = range(there.start + few, there.stop + few)
        self._each(self._put, range(there.stop, there.stop + few), 0)
        self._each(self._put, self._range[: self._some], 1 + turn)
        return {"insert": few, "update": self._some, "delete": few}

    def check(self, found: dict[str, Any], expected: dict[str, int]) -> None:
        """Raise ``SynclineError`` if a run told something else than what was changed."""
        if found["changes"] != expected:
            raise SynclineError(f"The run told {found['changes']}, and {expected} was changed.")
        wanted = [len(self._range), *(int(self._sum(period)) for period in PERIODS)]
        if found["told"] != wanted:
            raise SynclineError(f"What is told of the scores is {found['told']}, and Redis has {wanted}.")

    def _sum(self, period: str) -> float:
        """The sum of all scores, as the server has them."""
        total, place = 0.0, 0
        while True:
            found: Any = self._client.zscan(f"leaderboard:{period}", place, count=_SLICE)
            place, page = found
            total += sum(score for _, score in page)
            if not place:
                return total

    def _each(self, script: Any, numbers: range, *more: int) -> None:
        keys = [f"leaderboard:{period}" for period in PERIODS]
        for first in range(0, len(numbers), _SLICE):
            some = numbers[first : first + _SLICE]
            script(keys=keys, args=[some[0], some[-1], *more])


class _Child:
    """The process whose runs are measured. Leaving the context ends it.

    Raises:
        Unavailable: it failed, with what it said.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "syncline.bench.redis_diff"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(config))

    def run(self) -> dict[str, Any]:
        """Have one run done: seconds, processor seconds, peak memory, its changes, and sums of what is told."""
        self._say("run")
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
        if "error" in answer:
            raise Unavailable(f"The measured run failed: {answer['error']}")
        return dict(answer)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(f"The measured process ended with code {self._process.wait()}.") from None

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


# ------------------------------------------------------------------------------------------------------- the child


@contextmanager
def _runs(config: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    """The runs of the source, each done when it is asked for."""
    from syncline.capture.redis.source import RedisSource
    from syncline.catalog.repository import ControlSchema
    from syncline.config import Config
    from syncline.pipeline.memory import return_freed_memory
    from syncline.pipeline.reports import Reports
    from syncline.pipeline.runs import RecordedRuns

    return_freed_memory()  # as every engine does
    tree = Config.model_validate(config)
    source = tree.source("board")
    assert isinstance(source, RedisSource)
    with ControlSchema(tree.control_dsn, tree.control.schema_name) as control:
        control.migrate()
        records = RecordedRuns(tree, "board", control, Reports(control))
        source.record_runs(records)
        runs = _measured(source)
        try:
            yield runs
        finally:
            runs.close()
            records.close()


def _measured(source: Any) -> Any:
    identity, number = source.identify(), source.number()
    if not number:
        source.attach(identity, 0, lambda _: None)  # which is a run of its own, and tells everything
        yield {}
        number = source.number()
    stream = source.capture(source.tables(), 0, 1, lambda *_: None)
    entries = stream.entries(number)
    next(entries)  # says where it begins
    try:
        while True:
            forget_peak()
            yield _one(stream, entries) | {"told": _told(source), "peak_rss_bytes": peak_rss_bytes()}
    finally:
        stream.close()
        entries.close()


def _one(stream: Any, entries: Iterator[Any]) -> dict[str, Any]:
    """One run, to the place behind it. Nothing is kept of what it tells."""
    from syncline.change import Batch, Op

    counts = {op.name.lower(): 0 for op in (Op.INSERT, Op.UPDATE, Op.DELETE)}
    began, spent = time.perf_counter(), time.process_time()
    for entry in entries:
        for batch in (item for item in entry.items if isinstance(item, Batch)):
            for found in pc.value_counts(batch.rows.column("op")).to_pylist():
                counts[Op(found["values"]).name.lower()] += found["counts"]
        if entry.place:
            stream.confirm(entry.place)
            break
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu": {"syncline": time.process_time() - spent}, "changes": counts}


def _told(source: Any) -> list[int]:
    """How many rows are told, and the sum of each score."""
    from syncline.capture.redis.settings import schema_of

    sums = [0] * (1 + len(PERIODS))
    with source.told.state() as state:
        for columns in state.batches(schema_of(source.settings), _SLICE):
            found = [len(columns[0]), *(pc.sum(column.cast(pa.int64())).as_py() for column in columns[1 : len(sums)])]
            sums = [a + b for a, b in zip(sums, found, strict=True)]
    return sums


def _serve(lines: IO[str], out: IO[str]) -> None:
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))  # warnings only
    try:
        with _runs(json.loads(next(lines))) as runs:
            for _ in lines:
                out.write(json.dumps(next(runs)) + "\n")
                out.flush()
    except SynclineError as error:
        out.write(json.dumps({"error": str(error)}) + "\n")
        out.flush()


if __name__ == "__main__":
    # What anybody prints goes to standard error: standard output is the conversation.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin, answers)
