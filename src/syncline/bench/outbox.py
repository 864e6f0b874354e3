"""Events of an outbox on their way to DuckDB rows: through the slot and by polling, over the same events, in turns."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncline.bench.engine import Engine, Figures, engine_config
from syncline.bench.latency import WARM_UP_S
from syncline.bench.report import Talk, environment, median, spread
from syncline.bench.stores import check_copies
from syncline.bench.workload import TABLE, Source
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import EntityConfig, OutboxConfig
from syncline.errors import Unavailable

__all__ = ["Events", "outbox"]

_CLIENTS = 8
_OUTBOX = OutboxConfig(entities={"chunk": EntityConfig(table=TABLE)})
_WAYS = ("slot", "polling")

# Rows and their events in one transaction, as an application has them.
_CREATE = """
with new as (insert into chunks select g, {values} from generate_series(%s::bigint, %s::bigint) g returning *)
select count(*) from (select syncline_outbox.publish_events((
  select jsonb_agg(jsonb_build_object('event_type', 'CONTENT_CREATED', 'entity_type', 'chunk', 'entity_id', id::text,
    'payload', to_jsonb(new)) order by id) from new))) as published
"""
_PATCH = """\\set id random(0, {top})
with changed as (update chunks set score = random() * 100 where id between :id and :id + {more} returning id, score)
select syncline_outbox.publish_events((
  select jsonb_agg(jsonb_build_object('event_type', 'CONTENT_UPDATED', 'entity_type', 'chunk', 'entity_id', id::text,
    'payload', jsonb_build_object('score', score)) order by id) from changed));
"""


@dataclass(frozen=True, slots=True)
class Events:
    """How many events wait in each turn, and how many a second are published afterwards, so many in a transaction, for
    how many seconds after a warm-up."""

    waiting: int
    rate: int
    per_transaction: int
    seconds: int
    warm_up_s: int = WARM_UP_S


@dataclass
class _Found:
    """What was measured of one way, one item a turn."""

    per_s: list[float] = field(default_factory=list)
    achieved: list[float] = field(default_factory=list)
    latency_ms: list[dict[str, float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def outbox(events: Events, repeat: int, talk: Talk, folder: Path | None) -> dict[str, Any]:
    """Measure; see the command's help. Both copies are compared by content in each turn.

    Raises:
        SynclineError: an engine failed, or a copy is not equal.
    """
    found = {way: _Found() for way in _WAYS}
    with Source.started(folder) as source:
        install(source.connection, _OUTBOX)
        for turn in range(repeat):
            bench = _Turn(source, events, turn)
            for way, figures in bench.take(talk).items():
                found[way].per_s.append(events.waiting / figures.seconds)
                found[way].cpu.append(sum(figures.cpu.values()) * 1e6 / events.waiting)
            for way, (achieved, figures) in bench.follow(talk).items():
                found[way].achieved.append(achieved)
                found[way].latency_ms.append(figures.latency_ms)
        return {
            "benchmark": "outbox",
            **environment(source),
            "events": events.waiting,
            "rate": events.rate,
            "per_transaction": events.per_transaction,
            "seconds": events.seconds,
            "repeat": repeat,
            **{way: _figures(one) for way, one in found.items()},
            "copies_equal": True,
        }


def _figures(found: _Found) -> dict[str, Any]:
    return {
        "events_per_s": median(found.per_s, 0),
        "events_per_s_spread": spread(found.per_s),
        "cpu_us_per_event": median(found.cpu, 1),
        "achieved_per_s": median(found.achieved, 1),
        **{name: median([one[name] for one in found.latency_ms], 1) for name in ("p50_ms", "p95_ms")},
        "p95_ms_spread": spread([one["p95_ms"] for one in found.latency_ms]),
    }


class _Turn:
    """One turn: an empty table, and an engine for each way with a copy, a log and records of its own."""

    def __init__(self, source: Source, events: Events, number: int) -> None:
        self._source = source
        self._events = events
        self._order = _WAYS if number % 2 else _WAYS[::-1]
        source.execute("truncate chunks")
        self._configs = {way: self._config(way, number) for way in _WAYS}

    def take(self, talk: Talk) -> dict[str, Figures]:
        """What each way took to bring the events that wait into committed rows, from the beginning of its stream."""
        for config in self._configs.values():
            with Engine(config, "start") as engine:  # the slot is made, and the poller has its place
                engine.wait(loaded=True)
        with talk.filling(self._events.waiting) as wrote:
            marks = self._publish(wrote)
        self._source.settle()
        found = {}
        for way in self._order:
            with (
                talk.doing(f"{self._events.waiting:,} events, {way}"),
                Engine(self._configs[way], "streaming") as engine,
            ):
                found[way] = engine.wait(place=marks[way])
        return found

    def follow(self, talk: Talk) -> dict[str, tuple[float, Figures]]:
        """Events a second that were published, and what the engine that followed them shows, for each way."""
        found = {}
        for way in self._order:
            config = self._configs[way]
            with Engine(config, "start") as engine:
                engine.wait(place=self._mark()[way])  # it has what was published while the other one followed
                with talk.doing(f"warming up for {self._events.warm_up_s} s, {way}"):
                    self._patch(self._events.warm_up_s)
                with talk.doing(f"{self._events.rate:,} events a second for {self._events.seconds} s, {way}"):
                    engine.reset()
                    achieved = self._patch(self._events.seconds)
                    engine.wait(place=self._mark()[way])  # what is not there yet behind the last event counts, too
                    found[way] = achieved, engine.figures()
                with talk.doing("comparing with the source"):
                    check_copies(config, self._events.waiting)
        return found

    def _config(self, way: str, number: int) -> dict[str, Any]:
        folder = self._source.folder / f"{way}_{number}"
        folder.mkdir()
        name = f"bench_{way}_{number}"
        config = engine_config(self._source.dsn, folder, name)
        told = {"dsn": self._source.dsn, "monitored_tables": [TABLE], "outbox": _OUTBOX.model_dump(by_alias=True)}
        ours = {"slot": name, "publication": name} if way == "slot" else {"type": "outbox"}
        return {**config, "sources": {"main": {**told, **ours}}}

    def _publish(self, wrote: Callable[[int], None]) -> dict[str, int]:
        """The events that wait, with their rows; the places behind them."""
        per, count = 100, self._events.waiting
        for start in range(0, count, per):
            last = min(start + per, count) - 1
            self._source.execute(_CREATE.format(values=self._source.values), start, last)
            wrote(last + 1)
        return self._mark()

    def _mark(self) -> dict[str, int]:
        """For each way a place that it passes with one more event, published now."""
        with self._source.connection.transaction():
            self._source.execute(
                "select syncline_outbox.publish_events(jsonb_build_array(jsonb_build_object('event_type',"
                " 'CONTENT_UPDATED', 'entity_type', 'chunk', 'entity_id', '0', 'payload', jsonb_build_object())))"
            )
            row = self._source.execute(
                "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::int8, pg_current_xact_id()::text::int8"
            ).fetchone()
        assert row is not None
        return dict(zip(_WAYS, map(int, row), strict=True))

    def _patch(self, seconds: int) -> float:
        """Publish patches for so long; the events a second that were achieved.

        Raises:
            Unavailable: pgbench failed.
        """
        per = self._events.per_transaction
        script = self._source.folder / "patch.sql"
        script.write_text(_PATCH.format(top=max(0, self._events.waiting - per), more=per - 1))
        command = [
            *(str(self._source.server.bin("pgbench")), "--no-vacuum", "--protocol", "prepared", "--max-tries", "10"),
            *("--client", str(_CLIENTS), "--rate", str(self._events.rate / per), "--time", str(seconds)),
            *("--file", str(script), self._source.dsn),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode or found is None:
            raise Unavailable(f"pgbench ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
        return float(found[1]) * per
