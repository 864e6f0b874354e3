"""Reading members and their values from the keys: everything by scanning, or some members by name.

Either way a group of columns comes as record batches: ``member``, then its columns, all binary as the server has them.
A scan gives what is there from beginning to end; what moves meanwhile may come twice or not at all (the manual of
SCAN), so nobody concludes from a scan alone that a member is gone (correctness rule 31).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from syncline.capture.redis.connection import Connection
from syncline.capture.redis.settings import MEMBER, Group, MembersConfig
from syncline.capture.redis.values import OTHER_KIND

__all__ = ["KeyReader", "Stopped", "literal"]

_SCANS = {"scores": "ZSCAN", "fields": "HSCAN"}
_LOOKS = {"scores": "ZMSCORE", "fields": "HMGET"}
_NO_HASH: list[Any] = []  # stands for what HMGET gives of a key of another kind: it stops no other member
_SPECIAL = re.compile(r"([*?\[\]\\^])")


class Stopped(Exception):
    """Somebody asked the reading to end."""


class _Pace:
    """Holds back what is faster than so many members a second."""

    def __init__(self, per_s: int | None, stop: threading.Event) -> None:
        self._per_s, self._stop = per_s, stop
        self._due = time.monotonic()

    def took(self, members: int) -> None:
        now = time.monotonic()
        if self._per_s is not None:
            self._due = max(self._due, now) + members / self._per_s
        if self._stop.wait(max(0.0, self._due - now)) if self._due > now else self._stop.is_set():
            raise Stopped


class KeyReader:
    """Reads the groups of one configuration over one connection. Raises as the connection does, and ``Stopped``."""

    def __init__(self, config: MembersConfig, connection: Connection, stop: threading.Event) -> None:
        self._connection = connection
        self._size = config.batch_size
        self._pace = _Pace(config.members_per_s, stop)

    def missing(self, groups: Sequence[Group]) -> frozenset[str]:
        """Keys of many members that are not there at all: expired, evicted, never made, or emptied."""
        keys = [g.key for g in groups if g.whole]
        found = self._connection.calls([("EXISTS", key) for key in keys]) if keys else []
        return frozenset(key for key, there in zip(keys, found, strict=True) if not there)

    def try_out(self, group: Group) -> None:
        """Ask for a little of a group, to see whether it may be read and is of its kind."""
        if group.kind == "hashes":
            self._connection.call("SCAN", 0, "MATCH", "syncline-no-such-key", "COUNT", 1, "TYPE", "hash")
            self._look_hashes(group, [b"syncline-no-such-member"])
        else:
            self._connection.call(_SCANS[group.kind], group.key, 0, "COUNT", 1)
            self.look(group, [b"syncline-no-such-member"])

    def scan(self, group: Group) -> Iterator[pa.RecordBatch]:
        """Every member of the group, some more than once."""
        if group.kind == "hashes":
            yield from self._scan_hashes(group)
            return
        scan = (_SCANS[group.kind], group.key)
        self._connection.send(*scan, 0, "COUNT", self._size)
        while True:
            place, found = self._connection.receive()
            if place != b"0":
                self._connection.send(*scan, place, "COUNT", self._size)  # while this page is taken in
            if found:
                yield _batch(group, found[::2], [found[1::2]])
            self._pace.took(len(found) // 2)
            if place == b"0":
                return

    def _scan_hashes(self, group: Group) -> Iterator[pa.RecordBatch]:
        before, _, behind = group.key.partition(MEMBER)
        scan = ("MATCH", f"{literal(before)}*{literal(behind)}", "COUNT", self._size, "TYPE", "hash")
        place, keys = self._connection.call("SCAN", 0, *scan)
        waiting = None
        while True:
            self._connection.send_each("HMGET", keys, *group.fields)
            if place != b"0":
                self._connection.send("SCAN", place, *scan)
            if waiting is not None:
                yield waiting  # while the server looks for the next ones
            rows = self._connection.receive_each(len(keys), _NO_HASH)
            there = [n for n, row in enumerate(rows) if row is not _NO_HASH]  # it may have become another kind
            rows = [rows[n] for n in there]
            members = [keys[n][len(before.encode()) : len(keys[n]) - len(behind.encode())] for n in there]
            waiting = _hashes(group, members, rows) if members else None
            self._pace.took(len(members))
            if place == b"0":
                break
            place, keys = self._connection.receive()
        if waiting is not None:
            yield waiting

    def look(self, group: Group, members: Sequence[bytes]) -> pa.RecordBatch:
        """What these members have now, without those that have nothing."""
        if group.kind == "hashes":
            return self._look_hashes(group, members)
        values: list[Any] = []
        for first in range(0, len(members), self._size):
            some = members[first : first + self._size]
            values += self._connection.call(_LOOKS[group.kind], group.key, *some)
        there = [n for n, value in enumerate(values) if value is not None]
        return _batch(group, [members[n] for n in there], [[values[n] for n in there]])

    def _look_hashes(self, group: Group, members: Sequence[bytes]) -> pa.RecordBatch:
        found: list[tuple[bytes, list[Any]]] = []
        for first in range(0, len(members), self._size):
            some = members[first : first + self._size]
            keys = [group.key_of(member) for member in some]
            rows = self._connection.call_each("HMGET", keys, *group.fields, other_kind=_NO_HASH)
            # A key of another kind is no hash, as a scan has it.
            found += [(member, row) for member, row in zip(some, rows, strict=True) if row is not _NO_HASH]
        bare = [member for member, row in found if not any(v is not None for v in row)]
        there = self._connection.call_each("EXISTS", [group.key_of(member) for member in bare])
        gone = {member for member, exists in zip(bare, there, strict=True) if not exists}
        found = [(member, row) for member, row in found if member not in gone]
        return _hashes(group, [member for member, _ in found], [row for _, row in found])

    def names(self, group: Group, base_key: str) -> Iterator[list[bytes]]:
        """Every member that has a hash, or of which something was written, some at a time, each once."""
        known: set[bytes] = set()
        before, behind = (part.encode() for part in group.key.split(MEMBER))
        pattern = f"{literal(group.key.partition(MEMBER)[0])}*{literal(group.key.partition(MEMBER)[2])}"
        place = b"0"
        while True:
            place, keys = self._connection.call("SCAN", place, "MATCH", pattern, "COUNT", self._size, "TYPE", "hash")
            yield _new(known, [key[len(before) : len(key) - len(behind)] for key in keys])
            if place == b"0":
                break
        while True:
            place, found = self._connection.call("HSCAN", base_key, place, "COUNT", self._size)
            yield _new(known, found[::2])
            if place == b"0":
                return

    def meet(
        self, group: Group, members: Sequence[bytes], base_key: str, table_key: str, buried_key: str
    ) -> pa.RecordBatch:
        """What these members have now, and what was last written of them: ``member``, whether it is ``there``, ``base``
        (the whole record), ``gone`` (when rows of the table last went together, and when this one went), then the
        columns. All of a moment: what is written in between would look like an edit that rests on it."""
        there: list[bool] = []
        bases: list[bytes | None] = []
        gone: list[bytes] = []
        values: list[list[Any]] = []
        for first in range(0, len(members), self._size):
            some = members[first : first + self._size]
            asked = [
                command
                for member in some
                for command in (
                    ("EXISTS", group.key_of(member)),
                    ("HMGET", group.key_of(member), *group.fields),
                    ("HGET", base_key, member),
                    ("HGET", buried_key, member),
                )
            ]
            went, *found = self._connection.at_once(
                [("HGET", table_key, "gone"), *asked], [OTHER_KIND] * len(group.fields)
            )
            gone += [b"%s %s" % (went or b"", buried or b"") for buried in found[3::4]]
            there += map(bool, found[::4])
            values += found[1::4]
            bases += found[2::4]
            self._pace.took(len(some))
        columns = [pa.array([row[n] for row in values], pa.binary()) for n in range(len(group.fields))]
        kept = [pa.array(values, pa.binary()) for values in (bases, gone)]
        arrays = [pa.array(members, pa.binary()), pa.array(there, pa.bool_()), *kept, *columns]
        return pa.RecordBatch.from_arrays(arrays, names=["member", "there", "base", "gone", *group.columns])

    def changed(self, key: str, since: float) -> Iterator[list[bytes]]:
        """Members noted in a sorted set at or after a moment, some at a time, and some twice. Pages go on from the last
        moment, never by rank: what is noted anew meanwhile would move others across the border of a page."""
        alike = 0
        while True:
            found = self._connection.call(
                "ZRANGEBYSCORE", key, repr(since), "+inf", "WITHSCORES", "LIMIT", 0, self._size + alike
            )
            members, moments = found[::2], [float(moment) for moment in found[1::2]]
            if members:
                yield members
            self._pace.took(len(members))
            if len(members) < self._size + alike:
                return
            since, alike = moments[-1], moments.count(moments[-1])

    def last_change(self, key: str) -> float | None:
        """The latest moment noted there; None without any."""
        found = self._connection.call("ZRANGE", key, -1, -1, "WITHSCORES")
        return float(found[1]) if found else None


def _new(known: set[bytes], members: Sequence[bytes]) -> list[bytes]:
    fresh = [member for member in dict.fromkeys(members) if member not in known]
    known.update(fresh)
    return fresh


def literal(text: str) -> str:
    """Text for a pattern of SCAN that stands for itself."""
    return _SPECIAL.sub(r"\\\1", text)


def _hashes(group: Group, members: Sequence[bytes], rows: Sequence[list[Any]]) -> pa.RecordBatch:
    """Hashes that are there: one without any of the fields counts."""
    return _batch(group, members, list(zip(*rows, strict=True)) if rows else [()] * len(group.fields))


def _batch(group: Group, members: Sequence[bytes], columns: Sequence[Sequence[bytes | None]]) -> pa.RecordBatch:
    arrays = [pa.array(values, pa.binary()) for values in (members, *columns)]
    return pa.RecordBatch.from_arrays(arrays, names=["member", *group.columns])
