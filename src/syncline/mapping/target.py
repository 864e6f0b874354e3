"""The mapping of all tables of one target."""

from __future__ import annotations

from collections.abc import Mapping

from syncline.change import TableSchema
from syncline.errors import Misconfigured
from syncline.mapping.facts import Facts
from syncline.mapping.settings import TableMapping
from syncline.mapping.table import MappedTable
from syncline.patterns import parse_pattern

__all__ = ["TargetMapping"]


class TargetMapping:
    """What is said of which table: by name, else by the first pattern that matches, written as in ``monitored_tables``.
    Without ``settings`` all tables are taken, in the plainest form of the kind of target.

    ``facts`` are the source's tables; a schema that differs from them (an older one in the log) is mapped with its own
    columns.
    """

    def __init__(
        self, settings: Mapping[str, TableMapping] | None, facts: Mapping[str, Facts], plain: type[TableMapping]
    ) -> None:
        said = [(parse_pattern(text), given) for text, given in (settings or {}).items()]
        self._said = None if settings is None else sorted(said, key=lambda pair: not pair[0].exact)
        self._facts = dict(facts)
        self._plain = plain
        self._mapped: dict[TableSchema, MappedTable] = {}
        self._chosen = {table: chosen for table in facts if (chosen := self._choose(table)) is not None}

    def _choose(self, table: str) -> TableMapping | None:
        if self._said is None:
            return self._plain()
        known = self._facts.get(table)
        namespace, _, name = table.partition(".")
        named = known.schema if known else TableSchema(namespace, name, ())
        return next((given for pattern, given in self._said if pattern.matches(named)), None)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that the target takes."""
        return tuple(self._chosen)

    def takes(self, table: str) -> bool:
        """Whether the target takes the table."""
        return table in self._chosen or (table not in self._facts and self._choose(table) is not None)

    def table(self, source: TableSchema) -> MappedTable:
        """The mapping of one table that is taken, in this schema version.

        Raises:
            Misconfigured: the settings do not fit the table.
        """
        mapped = self._mapped.get(source)
        if mapped is None:
            known = self._facts.get(source.qualified)
            facts = Facts(source, known.foreign_keys if known else ())
            settings = self._chosen.get(source.qualified) or self._choose(source.qualified) or self._plain()
            mapped = self._mapped[source] = MappedTable(facts, settings, self._facts, self._chosen)
        return mapped

    def digest(self, table: str) -> str:
        """What the target makes of a table as the source has it now, in short (:attr:`MappedTable.digest`); '' for one
        that it does not take, and for one that can't be mapped, which shows when it is."""
        known = self._facts.get(table)
        if known is None or not self.takes(table):
            return ""
        try:
            return self.table(known.schema).digest
        except Misconfigured:
            return ""
