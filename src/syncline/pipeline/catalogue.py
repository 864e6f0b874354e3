"""The tables of a source as its catalogue shows them: chosen when a session begins, and watched while it streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from syncline.capture.tables import TableInfo, only_lost_columns, reshaped
from syncline.change import Entry, Loaded, Marker
from syncline.log import Incarnation
from syncline.pipeline.attach import usable_tables
from syncline.pipeline.context import Context
from syncline.pipeline.loads import Loads
from syncline.pipeline.target import Target

__all__ = ["Catalogue"]


class Catalogue:
    """Which ``tables`` are captured, and which have to be read again because they came or changed.

    PostgreSQL sends nothing for what ALTER TABLE does to rows, and no new shape before the next row changes
    (correctness rule 20), so the catalogue is looked at again and again.
    """

    def __init__(
        self, context: Context, targets: dict[str, Target], loads: Loads, append: Callable[[list[Entry]], None]
    ) -> None:
        self._context = context
        self._targets = targets
        self._loads = loads
        self._append = append
        self._seen: tuple[Any, ...] = ()
        self.tables: list[TableInfo] = []

    def choose(self, *, begins: bool = False) -> list[str]:
        """Look at the source's tables as they are now; returns those whose changes were not captured until now.

        ``begins`` as in :func:`~syncline.pipeline.attach.usable_tables`.

        Raises:
            Misconfigured: the source can't be captured as it is, or there is no table.
        """
        context, source = self._context, self._context.source
        tables = usable_tables(source, context.name, context.reports, begins=begins)
        added = source.prepare(tables, context.talk)
        # Last: what fails before is looked at again, with the tables as they were.
        self.tables = source.described(tables)
        facts = source.facts(self.tables)
        for name, target in self._targets.items():
            target.mapping = context.config.targets[name].mapping(facts)
        return added

    def tell_left(self, loaded: set[str], incarnation: Incarnation) -> None:
        """Write to the log which tables the stream passes over, of those that a target may have (``loaded``, and what
        is in the stream): a target that stands before this forgets them, even if they are back when it hears of it."""
        captured = {t.qualified for t in self.tables}
        self._left((self._context.source.passed_over() | loaded) - captured, incarnation)

    def _left(self, tables: set[str], incarnation: Incarnation | None) -> None:
        if tables:
            number = incarnation.number if incarnation else 1
            self._append([Entry(tuple(Marker("left", table) for table in sorted(tables)), incarnation=number)])

    def look_again(self, incarnation: Incarnation | None) -> bool:
        """Take in tables that came or changed since, and request that they are read; whether anything did, or a load is
        due, for which the tables must be as they are now."""
        seen = self._context.source.mark()
        if seen == self._seen and not self._loads.due:
            return False
        before = {t.qualified: t for t in self.tables}
        added = self.choose()
        self._left(set(before) - {t.qualified for t in self.tables}, incarnation)
        self._loads.request(added)
        self._seen = seen
        for table in self.tables:
            self._compare(before.get(table.qualified), table, incarnation)
        return True

    def _compare(self, was: TableInfo | None, now: TableInfo, incarnation: Incarnation | None) -> None:
        """Have a table read again whose rows may have changed without a row event."""
        if was is None:
            self._loads.request([now.qualified])
        elif was.shape == now.shape:
            return
        elif self._is_settled(was) and (only_lost_columns(was, now) or not reshaped(was.shape, now.shape)):
            number = incarnation.number if incarnation else 1
            self._append([Entry((Marker("reshaped", now.qualified, Loaded(now.shape)),), incarnation=number)])
        elif only_lost_columns(was, now) or reshaped(was.shape, now.shape):
            self._context.talk(f"table {now.qualified} changed its shape, or its publication; it is read again")
            self._loads.request([now.qualified])

    def _is_settled(self, table: TableInfo) -> bool:
        """Whether every target has the rows of this very shape: else a newer shape must not be taken for theirs."""
        takers = [t for t in self._targets.values() if t.mapping.takes(table.qualified)]
        workers = [t.worker for t in takers if t.worker is not None]
        known = [w.cursor.loaded.get(table.qualified) for w in workers]
        return not self._loads.busy and all(k is not None and k.shape == table.shape for k in known)
