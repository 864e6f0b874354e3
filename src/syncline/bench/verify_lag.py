"""What verification costs a pipeline: latencies at a steady rate without it, with one `syncline verify` after the
other, and with the rolling verification of the engine itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.latency import WARM_UP_S, Steady, Writer
from syncline.bench.places import Address, Place, place_of
from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.stores import check_copies
from syncline.bench.verification import await_streaming, look, write_config
from syncline.bench.workload import SLOT, Source
from syncline.errors import SynclineError

__all__ = ["verify_lag"]

_DIMENSIONS = 128
_WAYS = ("without", "one_after_the_other", "rolling")
# With the default share. A table is compared no sooner again than after an hour by default, and there is but one.
_ROLLING = {"rolling": {"every_s": 1}}


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of one way: what the engine did, transactions a second that were achieved, and how many verifications
    ended meanwhile."""

    figures: Figures
    achieved: float
    verified: int

    @property
    def p95_ms(self) -> float:
        return self.figures.latency_ms["p95_ms"]


def verify_lag(
    kind: str, steady: Steady, repeat: int, address: Address | None, talk: Talk, folder: Path | None
) -> dict[str, Any]:
    """Measure; see the command's help. The copy is compared by content at the end.

    Raises:
        SynclineError: the engine failed, a verification did or found differences, or the copy is not equal.
    """
    with ExitStack() as stack:
        source = stack.enter_context(Source.started(folder, _DIMENSIONS if kind == "qdrant" else 0))
        # Before the rows are made: a server that can't be used is told at once.
        place = stack.enter_context(place_of(kind, source.folder, address, dimensions=_DIMENSIONS))
        bench = _Bench(source, place, steady, talk)
        bench.begin()
        turns = [bench.turn(number) for number in range(repeat)]
        rows = bench.compare()
        measured = {"rate": steady.rate, "seconds": steady.seconds, "table_rows": steady.table_rows, "repeat": repeat}
        return {
            "benchmark": "verify-lag",
            **environment(source),
            "target": kind,
            "server": place.server,
            **measured,
            **_result(turns),
            "rows_in_copy": rows,
            "copy_equal": True,
        }


class _Bench:
    """A loaded copy, an engine that follows, somebody who writes, and somebody who verifies."""

    def __init__(self, source: Source, place: Place, steady: Steady, talk: Talk) -> None:
        self._source = source
        self._steady = steady
        self._talk = talk
        self._writer = Writer(source, steady.rate, steady.table_rows)
        self._config = engine_config(source.dsn, source.folder, SLOT, targets={"main": place.target})

    def begin(self) -> None:
        """Rows, and a copy of them."""
        rows = self._steady.table_rows
        with self._talk.filling(rows) as wrote:
            self._source.fill(rows, 100_000, wrote)
            self._source.prepare_slot()
            self._source.settle()
        write_config(self._source, self._config)
        with self._talk.doing("copying them"), Engine(self._config, "start") as engine:
            engine.wait(loaded=True)

    def turn(self, number: int) -> Mapping[str, _Run]:
        """All ways, each with an engine of its own; another one is first in each turn."""
        first = number % len(_WAYS)
        return {way: self._run(way) for way in (*_WAYS[first:], *_WAYS[:first])}

    def _run(self, way: str) -> _Run:
        config = self._config | ({"verify": _ROLLING} if way == "rolling" else {})
        verifying = self._one_after_the_other if way == "one_after_the_other" else self._noted
        with self._talk.doing(way.replace("_", " ")), Engine(config, "start") as engine:
            engine.wait(loaded=True)
            await_streaming(self._source)
            with verifying() as verified:
                self._writer.run(WARM_UP_S)
                before = verified()
                engine.reset()
                achieved = self._writer.run(self._steady.seconds)
                while way == "one_after_the_other" and verified() == before:
                    self._writer.run(1)  # one at least has to end while it is measured
                # What is not there yet when the last row is written counts, too.
                engine.wait(place=self._source.mark())
                run = _Run(engine.figures(), achieved, verified() - before)
        self._talk(f"{way.replace('_', ' ')}: p95 {run.p95_ms:,.0f} ms, {run.verified} verifications")
        return run

    @contextmanager
    def _one_after_the_other(self) -> Iterator[Callable[[], int]]:
        """Somebody runs the command again and again; how often it ended so far."""
        verifier = _Verifier(self._source)
        verifier.start()
        try:
            yield verifier.verified
        finally:
            verifier.stop()
        verifier.check()

    @contextmanager
    def _noted(self) -> Iterator[Callable[[], int]]:
        """How often the engine itself compared the table so far: each comparison is noted."""
        noted = (
            "select coalesce(sum(n_tup_ins + n_tup_upd), 0)::int from pg_stat_user_tables"
            " where relname = 'sync_verified'"
        )
        yield lambda: int(self._source.value(noted))

    def compare(self) -> int:
        """The copy with its source; how many rows it has."""
        rows = int(self._source.value("select count(*) from chunks"))
        with self._talk.doing("comparing with the source"), Engine(self._config, "start") as engine:
            engine.wait(place=self._source.mark())
            check_copies(self._config, rows)
        return rows


class _Verifier(threading.Thread):
    """Runs `syncline verify` again and again."""

    def __init__(self, source: Source) -> None:
        super().__init__(name="verifier", daemon=True)
        self._ended = 0
        self._source = source
        self._asked = threading.Event()
        self._error: SynclineError | None = None

    def run(self) -> None:
        try:
            while not self._asked.is_set():
                found = look(self._source)
                if found.differences or found.report["not_compared"]:
                    raise SynclineError(f"A verification beside the writer found {found.report['tables']}.")
                self._ended += 1
        except SynclineError as error:
            self._error = error

    def stop(self) -> None:
        """End behind the command that runs."""
        self._asked.set()
        self.join()

    def verified(self) -> int:
        """How often it ended so far, and found nothing. Raises what went wrong."""
        self.check()
        return self._ended

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error


def _result(turns: list[Mapping[str, _Run]]) -> dict[str, Any]:
    # A ratio belongs to the runs of one turn: noise that lasts longer than a turn hits all of them.
    ratios = {way: [turn[way].p95_ms / turn["without"].p95_ms for turn in turns] for way in _WAYS[1:]}
    return {
        "ratio": {way: median(found) for way, found in ratios.items()},
        "ratio_spread": {way: spread(found) for way, found in ratios.items()},
        **{way: _told([turn[way] for turn in turns]) for way in _WAYS},
    }


def _told(runs: list[_Run]) -> dict[str, Any]:
    return {
        **{name: median([run.figures.latency_ms[name] for run in runs], 2) for name in runs[0].figures.latency_ms},
        "p95_ms_spread": spread([run.p95_ms for run in runs]),
        "achieved_per_s": median([run.achieved for run in runs], 1),
        "engine_cores": median([sum(run.figures.cpu.values()) / run.figures.seconds for run in runs]),
        "verifications": sum(run.verified for run in runs),
    }
