"""What mappings know of the source's tables besides their columns."""

from __future__ import annotations

from dataclasses import dataclass

from syncline.change import TableSchema

__all__ = ["Facts", "ForeignKey"]


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """Columns that refer to the key columns ``key`` of the table ``to`` (``namespace.name``), in the same order."""

    columns: tuple[str, ...]
    to: str
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """One table of the source as its catalogue has it now."""

    schema: TableSchema
    foreign_keys: tuple[ForeignKey, ...] = ()
