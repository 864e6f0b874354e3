"""Reading and writing the control schema.

One method, one statement, committed on return. Every statement is built once; those that run often take all their rows
in one parameter each, so that their text (and PostgreSQL's plan) doesn't depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import msgspec
from sqlalchemy import Executable

from syncline.capture.source import describe
from syncline.catalog import statements as q
from syncline.catalog import upgrade
from syncline.catalog.connection import grant_create, grants, make_engine, read_only, translated
from syncline.errors import Misconfigured

__all__ = ["ControlSchema", "DeadLetter", "Parked", "Pause", "Request", "StatusRow"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row of ``sync_status``. Without a target it is the capture's; without a table, the target's as a whole."""

    source: str
    target: str = ""
    table_name: str = ""
    state: str = ""
    log: str = ""
    n: int = 0
    place: int = 0
    through: int = 0
    rows_applied: int = 0
    rows_per_s: float | None = None
    lag_bytes: int | None = None
    lag_s: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One change to park. ``(incarnation, version, ordinal)`` is its event id; ``payload`` an Arrow IPC stream."""

    source: str
    target: str
    table_name: str
    key_hash: bytes
    incarnation: int
    version: int
    ordinal: int
    operation: str
    code: str
    reason: str
    payload: bytes
    partial: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """The open dead letters of one table at one target: how many changes, and why most of them are parked."""

    source: str
    target: str
    table_name: str
    changes: int
    reason: str

    @property
    def of_events(self) -> bool:
        """Whether they are events of an outbox, which are parked before any target hears of them."""
        return self.target == parked_as(self.source)

    @property
    def of_members(self) -> bool:
        """Whether they are members that a run could not read, which no target hears of either."""
        return self.target == set_aside_as(self.source)

    @property
    def of_source(self) -> bool:
        """Whether they are parked at the source, for all targets."""
        return self.of_events or self.of_members

    @property
    def message(self) -> str:
        """What a person is told."""
        if self.of_events:
            return f"{self.changes:,} event(s) of {self.table_name} are parked: {self.reason}."
        if self.of_members:
            return f"{self.changes:,} member(s) of table {self.table_name} are parked: {self.reason}."
        return (
            f"{self.changes:,} change(s) of table {self.table_name} are parked at target {self.target}: {self.reason}."
        )

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        if self.of_events:
            return (
                "Publish each entity as created once more, or its delete: that settles what is parked of it. Of an"
                " outbox (not of a stream), so does `syncline resync --table` with the table of its entity type."
            )
        if self.of_members:
            return (
                "Correct them in Redis, or the types of the columns: the next full run settles it. `syncline periodic"
                f" sync --name {self.source} --dry-run` names some."
            )
        return (
            "A later whole row or delete of a key settles what is parked of it: mend the row at the source, or what"
            f" refuses it and then `syncline resync --table {self.table_name} --target {self.target}`."
        )


def parked_as(source: str) -> str:
    """The target that dead letters name which are events of a source's outbox: no target is called that, for names
    have no spaces."""
    return f"outbox of {source}"


def set_aside_as(source: str) -> str:
    """As :func:`parked_as`, of members that a run could not read."""
    return f"members of {source}"


@dataclass(frozen=True, slots=True)
class Pause:
    """What is held back; ``''`` stands for all. ``held_after`` is a position in ``log``.

    With ``resumed_at`` it is no longer held back, but the target has still to catch up from ``held_after``.
    """

    source: str
    target: str
    table_name: str
    log: str
    held_after: int | None
    requested_at: datetime
    requested_by: str
    resumed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asked for, a ``resync`` or a ``repair``. ``tables`` None means all, and so does ``''`` as the
    target. A repair is of one table at one target; ``keys`` is an Arrow IPC stream of the source's key columns."""

    id: int
    kind: str
    source: str
    tables: tuple[str, ...] | None
    target: str = ""
    keys: bytes | None = None


class ControlSchema:
    """The control schema of one database, by connection string and name. Any thread may call any method.

    Nothing connects before the first call. Methods raise ``Unavailable`` when the server is away (call again) and
    ``Misconfigured`` when the schema or a right is missing, with the command or statement that mends it.
    """

    def __init__(self, dsn: str, schema_name: str = "syncline", *, connect_timeout_s: int = 10) -> None:
        _valid(schema_name)
        self.schema_name = schema_name
        self._dsn = dsn
        self._timeout_s = connect_timeout_s
        self._engine = make_engine(dsn, schema_name, connect_timeout_s)

    def __enter__(self) -> ControlSchema:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back. Idempotent; a later call connects again."""
        self._engine.dispose()

    # ------------------------------------------------------------------------------------------------- the schema

    def migrate(self, progress: Callable[[str], None] | None = None) -> str:
        """Create the schema, or bring it up to date, in one transaction; the revision it is at then.

        Several at once wait for one another.

        Raises:
            Misconfigured: the role may not create, or a newer Syncline has migrated it.
        """
        engine = make_engine(self._dsn, self.schema_name, self._timeout_s, migration=True)
        try:
            with translated(self._dsn, self.schema_name), engine.begin() as connection:
                self._refuse_newer(upgrade.present(connection, self.schema_name))
                upgrade.upgrade(connection, self.schema_name, progress or _silent)
        finally:
            engine.dispose()
        return upgrade.latest()

    def migration_sql(self) -> str:
        """The SQL that makes the schema in a database that has none, for psql; nothing connects."""
        return upgrade.offline_sql(self.schema_name)

    def version(self) -> str | None:
        """The revision in the database, None when it was never migrated."""
        with translated(self._dsn, self.schema_name), self._engine.connect() as connection:
            return upgrade.present(connection, self.schema_name)

    def is_current(self) -> bool:
        """Whether the schema is there as this version of Syncline needs it. Raises ``Misconfigured`` if it is newer."""
        version = self.version()
        self._refuse_newer(version)
        return version == upgrade.latest()

    def check_rights(self) -> None:
        """Raise ``Misconfigured``, with the grant that is missing, unless :meth:`migrate` may create what it has to."""
        ((recovering, on_database, on_schema),) = (
            tuple(row.values()) for row in self._rows(q.MAY_CREATE, {"schema": self.schema_name})
        )
        where = f"control schema {self.schema_name} at {describe(self._dsn)}"
        if recovering:
            raise read_only(where)
        if on_schema is None and not on_database:
            message = f"The {where} is not there, and the role may not create it."
            raise Misconfigured(message, remedy=grant_create(self._dsn))
        if on_schema is False:
            message = f"The role of control.dsn may not create tables in the {where}."
            raise Misconfigured(message, remedy=grants(self._dsn, self.schema_name))

    def check(self) -> None:
        """Raise ``Misconfigured`` unless the schema is there, up to date, and ours to write."""
        version = self.version()
        where = f"control schema {self.schema_name} at {describe(self._dsn)}"
        if version is None:
            raise Misconfigured(f"The {where} does not exist yet.", remedy="Run `syncline migrate`.")
        self._refuse_newer(version)
        if version != upgrade.latest():
            raise Misconfigured(
                f"The {where} is at {version}, this version of Syncline needs {upgrade.latest()}.",
                remedy="Run `syncline migrate`.",
            )
        unusable = [row["relname"] for row in self._rows(q.UNUSABLE, {"schema": self.schema_name})]
        if unusable:
            raise Misconfigured(
                f"The role of control.dsn may not read and write {', '.join(unusable)} in the {where}.",
                remedy=grants(self._dsn, self.schema_name),
            )

    def _refuse_newer(self, version: str | None) -> None:
        if version is not None and version not in upgrade.known():
            raise Misconfigured(
                f"The control schema {self.schema_name} at {describe(self._dsn)} is at {version}, "
                f"which is newer than this version of Syncline ({upgrade.latest()}).",
                remedy="Upgrade Syncline.",
            )

    # ----------------------------------------------------------------------------------------------------- alerts

    def raise_alert(
        self, code: str, severity: str, subject: str, message: str, remedy: str = "", *, expires_s: float | None = None
    ) -> None:
        """Open an alert, or count up the open one of this code and subject and renew its text.

        ``severity`` is info, warning, error or critical. Unseen for ``expires_s`` seconds, it no longer counts as open.
        """
        expires = timedelta(seconds=expires_s) if expires_s is not None else None
        values = {"code": code, "severity": severity, "subject": _clean(subject), "expires_in": expires}
        self._change(q.RAISE_ALERT, values | {"message": _clean(message), "remedy": _clean(remedy)})

    def resolve_alert(self, code: str, subject: str) -> bool:
        """Resolve the open alert; whether there was one."""
        return self._change(q.RESOLVE_ALERT, {"code_": code, "subject_": _clean(subject)}) > 0

    def alerts(self, open_only: bool = True) -> list[Row]:
        """Alerts as dicts of the columns, the newest first; all that were ever raised unless ``open_only``."""
        return self._rows(q.OPEN_ALERTS if open_only else q.ALERTS)

    # ----------------------------------------------------------------------------------------------- dead letters

    def park(self, rows: Sequence[DeadLetter]) -> int:
        """Park changes, durable on return; how many of them were new (the same event again is left as it is)."""
        if not rows:
            return 0
        arrays: Row = {name: [getattr(row, name) for row in rows] for name in q.LETTER_FIELDS}
        arrays["reason"] = [_clean(reason) for reason in arrays["reason"]]
        return self._change(q.PARK, arrays)

    def supersede(self, target: str, table: str, key_hashes: Sequence[bytes], version: int) -> int:
        """Mark parked changes of these keys up to ``version`` as superseded by a full row or delete; how many."""
        if not key_hashes:
            return 0
        values = {"target_": target, "table_": table, "hashes": list(key_hashes), "version_": version}
        return self._change(q.SUPERSEDE, values)

    def open_dead_letters(self, target: str) -> dict[str, frozenset[bytes]]:
        """The hashes of the keys that are parked for a target, by qualified table name."""
        rows = self._rows(q.OPEN_LETTERS, {"target_": target})
        return {r["table_name"]: frozenset(map(bytes, r["hashes"])) for r in rows}

    def oldest_dead_letter(self, source: str, target: str) -> int | None:
        """The smallest version that is parked, None if nothing is."""
        version = self._rows(q.OLDEST_LETTER, {"source_": source, "target_": target})[0]["version"]
        return None if version is None else int(version)

    def letters_of(self, source: str, tables: Sequence[str], with_payload: str) -> list[Row]:
        """The open dead letters of these tables of a source, for all targets, the oldest first: target, table_name,
        key_hash, version, reason and parked_at, and the payload of those of one table."""
        values = {"source_": source, "tables": list(tables), "with_payload": with_payload}
        return self._rows(q.SOURCE_LETTERS, values)

    def dead_letter_counts(self) -> dict[tuple[str, str], int]:
        """How many changes are parked, by (source, target)."""
        return {(r["source"], r["target"]): r["parked"] for r in self._rows(q.COUNT_LETTERS)}

    def parked(self) -> list[Parked]:
        """What is parked, a table at a target each, in the order of their names."""
        found: dict[tuple[str, str, str], Parked] = {}
        for row in self._rows(q.PARKED):
            key = (row["source"], row["target"], row["table_name"])
            known = found.get(key) or Parked(*key, 0, row["reason"])
            found[key] = replace(known, changes=known.changes + row["changes"])
        return list(found.values())

    # ----------------------------------------------------------------------------------------------------- pauses

    def pause(self, source: str = "", target: str = "", table: str = "", *, requested_by: str = "") -> None:
        """Hold back what these names choose, ``''`` being all. Idempotent; takes back a resume still catching up."""
        self._change(q.PAUSE, {"source": source, "target": target, "table_name": table, "requested_by": requested_by})
        self._change(q.PAUSE_AGAIN, {"source_": source, "target_": target, "table_": table})

    def resume(self, source: str = "", target: str = "", table: str = "") -> int:
        """End the pauses that these names choose, ``''`` being all: how many.

        Those that hold a position stay, with ``resumed_at``, until :meth:`release`.
        """
        names = {"source_": source, "target_": target, "table_": table}
        # In this order, a position that is noted in between is found by the second.
        return self._change(q.UNPAUSE, names) + self._change(q.RESUME, names)

    def pauses(self) -> list[Pause]:
        """Everything held back or still catching up, the most specific first."""
        return [Pause(**row) for row in self._rows(q.PAUSES)]

    def hold(self, source: str, target: str, table: str, log: str, n: int) -> int | None:
        """Note that nothing behind position ``n`` of ``log`` was applied; the first position noted of a log stays.

        Returns the position that is noted, None when no pause covers these names any more. To be called before the
        target's cursor passes ``n``.
        """
        values = {"source": source, "target": target, "table_name": table, "log": log, "held_after": n}
        rows = self._rows(q.HOLD, values)
        return int(rows[0]["held_after"]) if rows else None

    def release(self, source: str, target: str, table: str) -> None:
        """The target has caught up with a resumed pause: forget it."""
        self._change(q.RELEASE, {"source_": source, "target_": target, "table_": table})

    # ------------------------------------------------------------------------------------------------------- gaps

    def open_gap(
        self,
        source: str,
        code: str,
        reason: str,
        *,
        target: str = "",
        table: str = "",
        from_place: int | None = None,
        to_place: int | None = None,
    ) -> int:
        """Record a gap; its id. An open one of the same names and code is widened and given the new reason."""
        values = {"source": source, "target": target, "table_name": table, "code": code, "reason": _clean(reason)}
        rows = self._rows(q.OPEN_GAP, values | {"from_place": from_place, "to_place": to_place})
        return int(rows[0]["id"])

    def resolve_gap(self, source: str, *, target: str = "", table: str = "", code: str = "") -> int:
        """Close the open gaps of exactly these names, of one code or of all: how many."""
        return self._change(q.RESOLVE_GAP, {"source_": source, "target_": target, "table_": table, "code_": code})

    def gaps(self, open_only: bool = True) -> list[Row]:
        """Gaps as dicts of the columns, the newest first."""
        return self._rows(q.OPEN_GAPS if open_only else q.GAPS)

    # ----------------------------------------------------------------------------------------------------- status

    def write_status(self, rows: Sequence[StatusRow]) -> None:
        """Replace these rows of the status in one statement. No two may be of the same source, target and table.

        A figure that is no number (a rate over no time) becomes null.
        """
        if rows:
            cleaned = [replace(row, message=_clean(row.message)) for row in rows]
            self._change(q.WRITE_STATUS, {"rows": msgspec.json.encode(cleaned).decode()})

    def statuses(self) -> list[Row]:
        """The status as dicts of the columns; ``age_s`` says how long ago each row was written."""
        return self._rows(q.STATUSES)

    # --------------------------------------------------------------------------------------------------- requests

    def request_resync(self, source: str, tables: Sequence[str] | None = None, *, target: str = "") -> int:
        """Ask the engine to read these tables (None: all) of the source again, for one target or all; its id."""
        wanted = None if tables is None else list(tables)
        values = {"kind": "resync", "source": source, "tables": wanted, "target": target, "keys": None}
        return int(self._rows(q.REQUEST, values)[0]["id"])

    def request_repair(self, source: str, table: str, target: str, keys: bytes) -> int:
        """Ask the engine to write the rows of these keys (an Arrow IPC stream) once more, for one target; its id."""
        values = {"kind": "repair", "source": source, "tables": [table], "target": target, "keys": keys}
        return int(self._rows(q.REQUEST, values)[0]["id"])

    def outcomes(self, requests: Sequence[int]) -> dict[int, str]:
        """How those of the requests ended that did, by id."""
        return {row["id"]: row["outcome"] or "" for row in self._rows(q.OUTCOMES, {"ids": list(requests)})}

    def withdraw(self, requests: Sequence[int]) -> int:
        """Nobody waits any more for these; how many had not ended. What an engine has begun, it may still do."""
        return self._change(q.WITHDRAW, {"ids": list(requests)})

    def take_requests(self, source: str, *, again: bool = False) -> list[Request]:
        """Take the requests for a source, the oldest first; each is given to one caller only.

        ``again`` gives out those that were taken but never finished as well: right when the engine starts.
        """
        rows = self._rows(q.TAKE_AGAIN if again else q.TAKE, {"source_": source})
        found = [
            Request(r["id"], r["kind"], r["source"], r["tables"] and tuple(r["tables"]), r["target"], _bytes(r["keys"]))
            for r in rows
        ]
        return sorted(found, key=lambda request: request.id)

    def finish_request(self, request_id: int, outcome: str) -> None:
        """Record how a request ended."""
        self._change(q.FINISH, {"id_": request_id, "outcome": _clean(outcome)})

    # ------------------------------------------------------------------------------------------------- statements

    def _rows(self, statement: Executable, values: Row | None = None) -> list[Row]:
        with translated(self._dsn, self.schema_name), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement, values or {}).mappings()]

    def _change(self, statement: Executable, values: Row) -> int:
        with translated(self._dsn, self.schema_name), self._engine.connect() as connection:
            return connection.execute(statement, values).rowcount


def _valid(schema_name: str) -> None:
    if not schema_name or len(schema_name.encode()) > 63 or "\0" in schema_name or schema_name.startswith("pg_"):
        raise Misconfigured(
            f"{schema_name!r} can't be the name of the control schema.",
            remedy="Set control.schema to a name of 1 to 63 bytes that doesn't begin with pg_.",
        )


def _clean(message: str) -> str:
    """A text that PostgreSQL can hold: neither NUL nor half of a surrogate pair, as a driver's message may."""
    return message.replace("\0", "\ufffd").encode(errors="replace").decode()


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _silent(_: str) -> None:
    """Progress that nobody asked for."""
