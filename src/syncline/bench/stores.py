"""From a filled slot to durable rows in a store, against the best load of the same rows that is written by hand.

Both sides begin with the same rows. In each turn the source changes while no engine runs, one side takes over the
changes and then the other, in alternating order; then both hold the same rows again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncline.bench.accounting import Sampler, cpu_seconds, peak_rss_bytes
from syncline.bench.bulk import Bulk, Delta
from syncline.bench.engine import Engine, engine_config
from syncline.bench.places import Address, Place, place_of
from syncline.bench.report import Talk, environment, median, per_row, spread
from syncline.bench.workload import SLOT, Filled, Source
from syncline.config import Config
from syncline.errors import SynclineError
from syncline.verify import verify

__all__ = ["Bench", "Load", "check_copies", "store"]


@dataclass(frozen=True, slots=True)
class Load:
    """What is written: so many new rows a turn, or, with ``table_rows``, a mix on a table of so many. ``durable`` and
    ``dimensions`` as in :func:`~syncline.bench.places.place_of`."""

    rows: int
    table_rows: int = 0
    dimensions: int = 128
    durable: bool = True


@dataclass(frozen=True, slots=True)
class _Run:
    """One turn of one side."""

    seconds: float
    cpu: Mapping[str, float]
    peak_rss_bytes: int = 0


def store(
    kind: str, load: Load, repeat: int, address: Address | None, talk: Talk, folder: Path | None
) -> dict[str, Any]:
    """Measure; see the command's help. Both copies are compared with the source in the end.

    Raises:
        SynclineError: a side failed, or a copy is not equal.
    """
    with ExitStack() as stack:
        dimensions = load.dimensions if kind == "qdrant" else 0
        source = stack.enter_context(Source.started(folder, dimensions))
        with talk.doing(f"starting {kind}"):
            place = stack.enter_context(
                place_of(kind, source.folder, address, durable=load.durable, dimensions=load.dimensions)
            )
            bulk = stack.enter_context(place.by_hand())
        bench = Bench(source, place, bulk, talk)
        bench.begin(load.table_rows)
        turns = [bench.turn(load, number) for number in range(repeat)]
        with talk.doing("comparing with the source"):
            rows = bench.compare()
        return _result(source, place, load, turns, rows)


@dataclass(frozen=True, slots=True)
class _Turn:
    changes: int
    by_hand: _Run
    ours: _Run


class Bench:
    """A source, a place, and what fills it by hand; both sides always hold the same rows between two turns."""

    def __init__(self, source: Source, place: Place, bulk: Bulk, talk: Talk) -> None:
        self._source = source
        self._place = place
        self._bulk = bulk
        self._talk = talk
        self._config = engine_config(source.dsn, source.folder, SLOT, targets={"main": place.target})

    def begin(self, table_rows: int) -> None:
        """Both sides hold the rows that are there before."""
        if table_rows:
            with self._talk.filling(table_rows) as wrote:
                self._source.fill(table_rows, 100_000, wrote)
        self._source.prepare_slot()
        with self._talk.doing("loading them" if table_rows else "making the tables"):
            with Engine(self._config, "start") as engine:
                engine.wait(loaded=True)
            self._bulk.prepare(self._source, Delta("true"))
            self._bulk.write()

    def turn(self, load: Load, number: int) -> _Turn:
        """Change the source, then let both sides take the changes over."""
        filled, delta = self._change(load)
        self._source.settle()
        self._bulk.prepare(self._source, delta)
        if number % 2 == 0:
            by_hand, ours = self._by_hand(), self._sync(filled)
        else:
            ours, by_hand = self._sync(filled), self._by_hand()
        self._talk(
            f"by hand {filled.changes / by_hand.seconds:,.0f} rows/s, Syncline {filled.changes / ours.seconds:,.0f}"
        )
        return _Turn(filled.changes, by_hand, ours)

    def _change(self, load: Load) -> tuple[Filled, Delta]:
        since = self._source.value("select clock_timestamp()::text")
        changed = f"updated_at >= '{since}'"
        if not load.table_rows:
            with self._talk.filling(load.rows) as wrote:
                return self._source.fill(load.rows, wrote=wrote), Delta(changed)
        with self._talk.doing(f"making {load.rows:,} changes"):
            before = self._keys()
            filled = self._source.mix(load.rows)
            return filled, Delta(changed, sorted(before - self._keys()))

    def _keys(self) -> set[int]:
        return set(self._source.value("select coalesce(array_agg(id), '{}') from chunks"))

    def _by_hand(self) -> _Run:
        with self._talk.doing("by hand"):
            before, own = self._bulk.server_cpu_s(), time.process_time()
            began = time.perf_counter()
            self._bulk.write()
            seconds = time.perf_counter() - began
        cpu = {"client": time.process_time() - own, "server": self._bulk.server_cpu_s() - before}
        return _Run(seconds, cpu)

    def _sync(self, filled: Filled) -> _Run:
        pid = self._place.pid
        before = cpu_seconds(pid) if pid else 0.0
        with self._talk.doing("Syncline"), ExitStack() as stack:
            sampler = stack.enter_context(Sampler(self._source.dsn, SLOT))
            backend = self._backend(stack)
            with Engine(self._config, "streaming") as engine:
                figures = engine.wait(place=filled.place)
                server = cpu_seconds(pid) - before if pid else 0.0
        if backend is not None:
            server = backend.cpu.get("backend", 0.0)
        spent = {**figures.cpu, "engine": sum(figures.cpu.values()), **sampler.cpu, "server": server}
        return _Run(figures.seconds, spent, figures.peak_rss_bytes)

    def _backend(self, stack: ExitStack) -> Sampler | None:
        """What follows the session that writes, where each has a process of its own."""
        if self._place.dsn is None:
            return None
        return stack.enter_context(Sampler(self._place.dsn, application="syncline-apply main"))

    def compare(self) -> int:
        """Both copies with the source; how many rows they have.

        Raises:
            SynclineError: one is not equal.
        """
        rows = int(self._source.value("select count(*) from chunks"))
        found = self._bulk.count()
        if found != rows:
            raise SynclineError(f"The copy that was made by hand has {found} rows, the source {rows}.")
        with Engine(self._config, "streaming") as engine:
            engine.wait(place=self._source.mark())
            check_copies(self._config, rows)
        return rows


def check_copies(config: Mapping[str, Any], rows: int) -> None:
    """Compare every copy of a running engine with its source, row by row.

    Raises:
        SynclineError: one is not equal, or has another number of rows.
    """
    report = verify(Config.model_validate(config), talk=lambda text: None)
    for table in report.tables:
        if table.differences or not table.compared or table.in_flight or table.parked or table.rows != rows:
            raise SynclineError(
                f"Target {table.target} is not equal to its source: {table.rows} of {rows} rows compared, "
                f"{table.missing} missing, {table.extra} extra, {table.different} different, {table.parked} parked."
            )


def _result(source: Source, place: Place, load: Load, turns: Sequence[_Turn], rows: int) -> dict[str, Any]:
    # A ratio belongs to the runs of one turn: noise that lasts longer than a turn hits both sides.
    ratios = [turn.by_hand.seconds / turn.ours.seconds for turn in turns]
    rates = {
        "by_hand": [turn.changes / turn.by_hand.seconds for turn in turns],
        "syncline": [turn.changes / turn.ours.seconds for turn in turns],
    }
    changes = [turn.changes for turn in turns]
    return {
        "benchmark": f"store {place.kind}" + (" --mix" if load.table_rows else ""),
        **environment(source),
        "server": place.server,
        "changes": round(median(changes, 0)),
        "table_rows": load.table_rows,
        "dimensions": place.dimensions,
        "repeat": len(turns),
        "ratio": median(ratios),
        "ratio_spread": spread(ratios),
        "rows_per_s": {side: median(found, 0) for side, found in rates.items()},
        "rows_per_s_spread": {side: spread(found) for side, found in rates.items()},
        "cpu_us_per_row": {
            "by_hand": _cpu([turn.by_hand for turn in turns], changes),
            "syncline": _cpu([turn.ours for turn in turns], changes),
        },
        "peak_rss_mb": {
            "syncline": round(max(turn.ours.peak_rss_bytes for turn in turns) / 2**20),
            **({"server": round(peak_rss_bytes(place.pid) / 2**20)} if place.pid else {}),
        },
        "rows_in_copy": rows,
        "copies_equal": True,
    }


def _cpu(runs: Sequence[_Run], changes: Sequence[int]) -> dict[str, float]:
    names = {name for run in runs for name in run.cpu}
    each = {n: median([r.cpu.get(n, 0.0) / c for r, c in zip(runs, changes, strict=True)], 12) for n in names}
    return per_row(each, 1)
