"""Entries of the stream behind a place, and whether all of them are still there.

Reading and looking are one transaction of the server's, so that what is trimmed in between is not overlooked. The
group is never read from: it is set to where the log is, for people and monitoring to see. So nobody who reads as a
member of the group takes anything away, and there is no list of pending entries to be worked off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from syncline.capture.redis.connection import Connection, describe
from syncline.capture.stream.settings import StreamSettings
from syncline.capture.stream.told import Seat, order
from syncline.errors import Gap, Misconfigured, SynclineError

__all__ = ["LOST_STREAM", "Entries", "Facts", "StreamReader"]

LOST_STREAM = "SL-STREAM-LOST"
_BLOCK_MS = 250

Entries = list[tuple[str, dict[bytes, bytes]]]
"""Ids, and their fields."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the server says of the stream. ``first`` and ``newest`` are the ids of what is there, ``last`` the greatest
    that ever was; '0-0' of one that is empty, or is not there. ``added`` were ever added, ``deleted`` is the greatest
    id that was deleted by name."""

    length: int = 0
    added: int = 0
    first: str = "0-0"
    newest: str = "0-0"
    last: str = "0-0"
    deleted: str = "0-0"

    @property
    def gone(self) -> int:
        """How many entries were added and are not there any more."""
        return self.added - self.length

    def is_trimmed_past(self, seat: Seat) -> bool:
        """Whether nothing is there up to a place, so that :attr:`gone` counts what was read, and nothing else."""
        return not self.length or order(self.first) > order(seat.entry)

    def flaw(self, seat: Seat) -> str:
        """Why what is behind the place can't be all that was added there; '' where it is."""
        if order(self.last) < order(seat.entry):
            return "it was emptied, evicted or made anew, or the server lost its last entries"
        if order(self.deleted) > max(order(seat.entry), order(seat.deleted)):
            return "entries were deleted that nobody had read"
        if seat.read is not None and self.is_trimmed_past(seat) and self.gone != seat.read:
            missing = self.gone - seat.read
            return f"{missing} entries were trimmed that nobody had read" if missing > 0 else "it was made anew"
        return ""

    def miscount(self, seat: Seat, found: int | None) -> str:
        """Why ``found`` entries can't be all that were added behind the place; '' where they are. A server that came
        back as it was a while ago, and got newer entries since, shows itself by nothing else."""
        if found is None or seat.read is None or self.added == seat.read + found:
            return ""
        if self.added < seat.read + found:
            return "the server lost its last entries, and has newer ones since"
        return "entries were deleted that nobody had read"

    def accepted(self, seat: Seat, number: int) -> Seat:
        """The place behind ``number`` from which it is read on, whatever is missing."""
        entry = "0-0" if order(self.last) < order(seat.entry) else seat.entry
        return Seat(number, entry, None, self.deleted)


class StreamReader:
    """Reads one stream over one connection. Raises as the connection does, and ``Gap``."""

    def __init__(self, settings: StreamSettings, connection: Connection) -> None:
        self._settings = settings
        self._key = settings.stream
        self._connection = connection

    def join(self) -> None:
        """Have the group there, and the stream."""
        answer = self._connection.answer("XGROUP", "CREATE", self._key, self._settings.group, "0", "MKSTREAM")
        self._refuse(answer, but=("BUSYGROUP",))

    def facts(self) -> Facts:
        """What the server says of the stream now."""
        (found,) = self._together([("XINFO", "STREAM", self._key)])
        return self._facts(found)

    def read(self, seat: Seat, count: int) -> tuple[Entries, Facts]:
        """The next entries behind a place, none where there are none; and how the stream was as they were read.

        Raises:
            Gap: entries behind the place are missing.
        """
        after = ("XRANGE", self._key, f"({seat.entry}", "+", "COUNT", count)
        found, entries = self._together([("XINFO", "STREAM", self._key), after])
        facts = self._facts(found)
        self.refuse_lost(facts, seat, len(entries) if len(entries) < count else None)
        return [(ident.decode(), dict(zip(fields[::2], fields[1::2], strict=True))) for ident, fields in entries], facts

    def refuse_lost(self, facts: Facts, seat: Seat, found: int | None) -> None:
        """Raise ``Gap`` if entries behind the place are missing; ``found`` are all that are there, if that is known."""
        if flaw := facts.flaw(seat) or facts.miscount(seat, found):
            raise Gap(
                f"Events of stream {self._key} at Redis {describe(self._settings.url)} behind {seat.entry} are lost: "
                f"{flaw}.",
                remedy="Publish them once more if you can; then `syncline resync` goes on with what the stream has now"
                " (on_gap: resync does it by itself).",
                code=LOST_STREAM,
            )

    def await_more(self, seat: Seat) -> None:
        """Wait a moment for an entry behind a place."""
        self._refuse(self._connection.answer("XREAD", "BLOCK", _BLOCK_MS, "COUNT", 1, "STREAMS", self._key, seat.entry))

    def show(self, seat: Seat) -> None:
        """Have the group, and the stream if that is wanted, be where the log is."""
        count = () if seat.read is None else ("ENTRIESREAD", seat.read)
        answer = self._connection.answer("XGROUP", "SETID", self._key, self._settings.group, seat.entry, *count)
        if self._refuse(answer, but=("NOGROUP", "The XGROUP subcommand requires the key to exist")):
            return  # somebody took it away, which loses nothing; the next look sees whether the stream is there
        if self._settings.trim and not self.others():
            milliseconds, _, sequence = seat.entry.partition("-")
            self._refuse(self._connection.answer("XTRIM", self._key, "MINID", f"{milliseconds}-{int(sequence) + 1}"))

    def others(self) -> list[str]:
        """The names of other groups that read the stream."""
        (found,) = self._together([("XINFO", "GROUPS", self._key)])
        names = [] if isinstance(found, Exception) else [_pairs(group)["name"].decode() for group in found]
        return sorted(set(names) - {self._settings.group})

    def evicts(self) -> str:
        """The server's policy of eviction, '' where it evicts nothing that has no expiry."""
        memory = self._connection.answer("INFO", "memory")
        if isinstance(memory, ResponseError):
            return ""
        lines = dict(line.partition(":")[::2] for line in memory.decode().splitlines())
        policy, limited = lines.get("maxmemory_policy", ""), lines.get("maxmemory", "0") != "0"
        return policy if limited and policy.startswith("allkeys-") else ""

    # ------------------------------------------------------------------------------------------------------- answers

    def _together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        found = self._connection.calls([("MULTI",), *commands, ("EXEC",)])[-1]
        for answer in found:
            if isinstance(answer, ResponseError) and "no such key" not in str(answer):
                raise self._refused(answer)
        return list(found)

    def _refuse(self, answer: Any, *, but: Sequence[str] = ()) -> bool:
        """Raise a refusal; of those that begin like these, tell that it is one."""
        if not isinstance(answer, ResponseError):
            return False
        if str(answer).startswith(tuple(but)):
            return True
        raise self._refused(answer)

    def _facts(self, answer: Any) -> Facts:
        if isinstance(answer, ResponseError):
            return Facts()
        found = _pairs(answer)
        if "entries-added" not in found:
            raise Misconfigured(
                f"Redis {describe(self._settings.url)} is too old: it does not count what is added to a stream.",
                remedy="Use Redis 7 or later, or Valkey.",
                code="SL-STREAM-SERVER",
            )
        first, last, deleted = ("recorded-first-entry-id", "last-generated-id", "max-deleted-entry-id")
        return Facts(
            length=found["length"],
            added=found["entries-added"],
            first=found[first].decode(),
            newest=newest[0].decode() if (newest := found["last-entry"]) else "0-0",
            last=found[last].decode(),
            deleted=found[deleted].decode(),
        )

    def _refused(self, error: ResponseError) -> SynclineError:
        """Without the server's words: they can quote keys and values (Guarantee 11)."""
        where = f"Redis {describe(self._settings.url)}"
        if str(error).startswith("WRONGTYPE"):
            return Misconfigured(
                f"Key {self._key} at {where} is no stream.", remedy="Correct stream.", code="SL-REDIS-KIND"
            )
        return Misconfigured(
            f"{where} refused a command about stream {self._key} ({str(error).partition(' ')[0]}).",
            remedy="Give the user the commands of docs/captures/stream.md.",
            code="SL-REDIS-REFUSED",
        )


def _pairs(answer: Sequence[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(answer[::2], answer[1::2], strict=True)}
