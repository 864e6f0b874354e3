"""Alerts, gaps and status on their way to the control schema, which may be away for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from syncline.catalog.repository import ControlSchema, StatusRow
from syncline.errors import SynclineError
from syncline.logs import logger

__all__ = ["Reports"]

_log = logger()

# Codes of what another engine holds: the control schema is that one's, and nobody there has anything to mend.
_OTHERS = ("-LOCKED", "-IN-USE")


class Reports:
    """Writes for the engine without ever holding it up: what can't be written now is written at the next tick.

    Of several reports about one thing only the newest waits, so the memory is bounded by what there is to say. An alert
    is logged when it opens, not each time it is renewed. ``ended`` hears, from any thread, what ends a source or a
    target until a person has mended it; without it, that is logged too.
    """

    def __init__(self, control: ControlSchema, ended: Callable[[SynclineError], None] | None = None) -> None:
        self._control = control
        self._ended = ended
        self._open: dict[tuple[str, str], str] = {}  # the causes that were said of alerts, by code and subject
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, ...], Callable[[], object]] = {}
        self._away = False

    def alert(
        self,
        code: str,
        severity: str,
        subject: str,
        error: SynclineError,
        *,
        ends: bool = False,
        expires_s: float | None = None,
    ) -> None:
        """Open (or renew) an alert with the error's message and remedy. ``ends``: its subject waits for a person.
        Unseen for ``expires_s`` seconds it is over: nobody is left who would say so."""
        message, remedy = error.message, error.remedy
        with self._lock:
            # What ends a subject comes once for each end; the words of others may hold figures that change.
            cause = message if ends else error.code
            new = self._open.get((code, subject)) != cause
            self._open[code, subject] = cause
        if new and ends and self._ended:
            self._ended(error)
        elif new:
            _log.warning("alert raised", code=code, subject=subject, message=message, remedy=remedy)
        if not error.code.endswith(_OTHERS):
            self._put(
                ("alert", code, subject),
                lambda: self._control.raise_alert(code, severity, subject, message, remedy, expires_s=expires_s),
            )

    def resolve(self, code: str, subject: str) -> None:
        """Close an alert."""
        self._forget(lambda known: known == (code, subject))
        self._put(("alert", code, subject), lambda: self._control.resolve_alert(code, subject))

    def still(self, code: str, under: str, subjects: Collection[str]) -> None:
        """Close the alerts of this code whose subject begins with ``under``, but for these: nothing is wrong with the
        others any more, or they are gone."""

        def resolve() -> None:
            for alert in self._control.alerts():
                subject = alert["subject"]
                if alert["code"] == code and subject.startswith(under) and subject not in subjects:
                    self._control.resolve_alert(code, subject)

        self._forget(lambda known: known[0] == code and known[1].startswith(under) and known[1] not in subjects)
        self._put(("still", code, under), resolve)

    def gap(self, source: str, error: SynclineError, *, target: str = "", table: str = "", ends: bool = False) -> None:
        """Record a gap, and alert of it. ``ends`` as in :meth:`alert`."""
        subject = "/".join(part for part in (source, target, table) if part)
        self._put(
            ("gap", error.code, source, target, table),
            lambda: self._control.open_gap(source, error.code, error.message, target=target, table=table),
        )
        self.alert(error.code, "critical", subject, error, ends=ends)

    def gap_closed(self, source: str, *, target: str = "", table: str = "") -> None:
        """The gaps of exactly these names are mended."""

        def close() -> None:
            for gap in self._control.gaps():
                if (gap["source"], gap["target"], gap["table_name"]) == (source, target, table):
                    self._control.resolve_alert(gap["code"], "/".join(p for p in (source, target, table) if p))
            self._control.resolve_gap(source, target=target, table=table)

        self._forget(lambda known: known[1] == "/".join(p for p in (source, target, table) if p))
        self._put(("gap closed", source, target, table), close)

    def recovered(self, subjects: Sequence[str]) -> None:
        """These sources and targets work: whatever was open about them, from earlier runs too, is over. What is still
        wrong raises its alert again."""

        def resolve() -> None:
            for alert in self._control.alerts():
                if alert["subject"] in subjects:
                    self._control.resolve_alert(alert["code"], alert["subject"])

        self._forget(lambda known: known[1] in subjects)
        self._put(("recovered", *subjects), resolve)

    def status(self, rows: list[StatusRow]) -> None:
        """Replace the status of one source."""
        if rows:
            self._put(("status", rows[0].source), lambda: self._control.write_status(rows))

    def flush(self) -> None:
        """Write what waits, in order, as far as the control schema answers."""
        with self._lock:
            waiting = list(self._waiting.items())
        for key, write in waiting:
            try:
                write()
            except SynclineError as error:
                # Away, or gone: the threads that report must never end of it.
                if not self._away:
                    _log.warning("control schema away, reports wait", error=str(error))
                self._away = True
                return
            self._away = False
            with self._lock:
                if self._waiting.get(key) is write:
                    del self._waiting[key]

    def _forget(self, over: Callable[[tuple[str, str]], bool]) -> None:
        """These alerts are closed: raised again, they are said again."""
        with self._lock:
            self._open = {known: said for known, said in self._open.items() if not over(known)}

    def _put(self, key: tuple[str, ...], write: Callable[[], object]) -> None:
        with self._lock:
            self._waiting.pop(key, None)
            self._waiting[key] = write
