"""What a log was given since some time, for whoever wants to look at those changes again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

from syncline.change import Entry
from syncline.errors import Damaged, Misconfigured, Unavailable
from syncline.log.embedded import DATABASE, EmbeddedLogConfig
from syncline.log.reading import read_entry
from syncline.log.rows import Rows

__all__ = ["history"]


def history(config: EmbeddedLogConfig, name: str, since: datetime) -> Iterator[Entry]:
    """The entries that were appended to the log of source ``name`` at or after ``since`` (with a time zone), in order.

    Another process may have the log open; nothing is written.

    Raises:
        Misconfigured: there is no log, or it does not go back that far.
        Unavailable: it was trimmed while it was read.
        Damaged: an entry is not what was written.
    """
    folder = config.folder(name)
    if not (folder / DATABASE).exists():
        raise Misconfigured(f"There is no log of source {name} at {folder}.", remedy="Verify without --since.")
    with closing(Rows(folder / DATABASE, readonly=True)) as rows:
        first, oldest = rows.appended(round(since.timestamp() * 1e6))
        frontier = rows.frontier()
        if frontier.head and (oldest is None or oldest >= since.timestamp() * 1e6):
            raise _too_far(config, name, oldest)
        for n in range(first or frontier.last + 1, frontier.last + 1):
            try:
                yield read_entry(rows, folder, n)
            except Damaged:
                with closing(Rows(folder / DATABASE, readonly=True)) as now:
                    if now.frontier().head < n:
                        raise
                raise Unavailable(
                    f"The log of source {name} was trimmed while it was read.", remedy="Say a later time."
                ) from None


def _too_far(config: EmbeddedLogConfig, name: str, oldest: int | None) -> Misconfigured:
    begins = "holds nothing" if oldest is None else f"begins at {datetime.fromtimestamp(oldest / 1e6, UTC):%F %T} UTC"
    return Misconfigured(
        f"The log of source {name} {begins}: what changed before that is not known.",
        remedy=f"Say a later time, set log.retention_s (now {config.retention_s:g}), or verify without --since.",
    )
