"""How far one source and its targets are: the picture that ``SyncService.status`` gives, and the same as rows."""

from __future__ import annotations

from typing import Any

from syncline.catalog.repository import StatusRow
from syncline.errors import Gap
from syncline.pipeline.source import SourcePipeline
from syncline.pipeline.target import Target

__all__ = ["source_status", "status_rows"]


def source_status(source: SourcePipeline, lag_bytes: int | None, *, latencies: bool = True) -> dict[str, Any]:
    """A JSON-able picture of a source; ``lag_bytes`` is how much WAL its log is behind, None if that is not known.
    Without ``latencies`` it costs next to nothing."""
    log = source.log.status()
    return {
        "state": source.state,
        "message": str(source.error) if source.error else "",
        "place": log.place,
        "lag_bytes": lag_bytes,
        "tables": [t.qualified for t in source.tables],
        "loading": {
            p.table: {"rows": p.rows, "bytes_done": p.bytes_done, "bytes_total": p.bytes_total}
            for p in list(source.loads.progress.values())
        },
        "log": {"log": log.log, "head": log.head, "end": log.end, "size_bytes": log.size_bytes},
        "targets": {
            name: _target_status(target, source.state, log.end, latencies) for name, target in source.targets.items()
        },
    }


def _target_status(target: Target, source: str, end: int, latencies: bool) -> dict[str, Any]:
    worker = target.worker
    if worker is None:
        waiting = "stopped" if source in ("gap", "failed", "stopped") else "starting"
        state = waiting if target.error is None else ("gap" if isinstance(target.error, Gap) else "failed")
        return {"state": state, "message": str(target.error) if target.error else ""}
    progress, cursor = worker.progress, worker.cursor
    return {
        "state": progress.state,
        "message": progress.message,
        "cursor": cursor.position.n,
        "place": cursor.place,
        "through": cursor.through,
        "base": cursor.base,
        "rows_applied": progress.rows,
        "rows_per_s": round(progress.rate(), 1),
        "lag_s": round(progress.lag_s(behind=end > cursor.position.n), 3),
        "healed": progress.healed,
        "parked": progress.parked,
        "overruled": progress.overruled,
        "loaded": list(cursor.loaded),
        **(progress.latency_ms() if latencies else {}),
    }


def status_rows(name: str, status: dict[str, Any]) -> list[StatusRow]:
    """The picture of the source ``name`` as rows of the control schema: its own, and one for each target."""
    log = status["log"]
    own = StatusRow(
        name,
        state=status["state"],
        log=log["log"],
        n=log["end"],
        place=status["place"],
        lag_bytes=status["lag_bytes"],
        message=status["message"],
    )
    return [own, *(_target_row(name, target, of, log["log"]) for target, of in status["targets"].items())]


def _target_row(source: str, target: str, of: dict[str, Any], log: str) -> StatusRow:
    if "cursor" not in of:  # it does not run yet, or could not start
        return StatusRow(source, target, state=of["state"], message=of["message"])
    return StatusRow(
        source,
        target,
        state=of["state"],
        log=log,
        n=of["cursor"],
        place=of["place"],
        through=of["through"],
        rows_applied=of["rows_applied"],
        rows_per_s=of["rows_per_s"],
        lag_s=of["lag_s"],
        message=of["message"],
    )
