"""What sources have in common that are one table, described by their settings, whose rows are what was last told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from syncline.capture import Again, Point, Pressure
from syncline.capture.schema import table_schema
from syncline.capture.tables import TableInfo
from syncline.mapping import Facts

__all__ = ["OneTableSource"]

Talk = Callable[[str], None]


class _State(Protocol):
    @property
    def number(self) -> int: ...


S = TypeVar("S", bound=_State)


class OneTableSource(ABC, Generic[S]):
    """These parts of a :class:`~syncline.capture.Source`. ``S`` is a state of its rows, which is held for each point
    under the name of its snapshot."""

    def __init__(self, info: TableInfo, state: Callable[[], AbstractContextManager[S]]) -> None:
        """``state`` holds the newest one."""
        self._info = info
        self._schema = table_schema(info)
        self._state = state
        self._held: dict[str, S] = {}

    # ---------------------------------------------------------------------------------------------------------- tables

    def names(self) -> list[str]:
        return [self._info.qualified]

    def tables(self) -> list[TableInfo]:
        return [self._info]

    def described(self, tables: Sequence[TableInfo]) -> list[TableInfo]:
        return list(tables)

    def prepare(self, tables: Sequence[TableInfo], talk: Talk) -> list[str]:
        """There is nothing to prepare: what was told is made when it is attached."""
        return []

    def facts(self, tables: Sequence[TableInfo]) -> dict[str, Facts]:
        return {info.qualified: Facts(table_schema(info)) for info in tables}

    def passed_over(self) -> set[str]:
        return {self._info.qualified}

    def mark(self) -> tuple[Any, ...]:
        return ("settings",)

    # ------------------------------------------------------------------------------------------------- stream and rows

    def again(self, error: Again) -> None:
        """Its stream never asks for this."""

    @contextmanager
    def point(self, purpose: str, talk: Talk) -> Iterator[Point]:
        """See :class:`~syncline.capture.Source`: the newest state, which is brought up to date first to verify."""
        if purpose == "verify":
            self.catch_up()
        with self._state() as state:
            name = uuid4().hex
            self._held[name] = state
            try:
                yield Point(state.number + 1, state.number + 1, name)
            finally:
                del self._held[name]

    @abstractmethod
    def catch_up(self) -> None:
        """Have all told that is there now. Raises ``Unavailable``."""

    # -------------------------------------------------------------------------------------------------------- looking

    def unseen(self) -> dict[str, Any]:
        return {}

    def lag(self, place: int) -> int | None:
        return None

    def pressures(self) -> list[Pressure]:
        return []
