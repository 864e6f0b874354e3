"""What stands in the way of capturing a source, found before anything is changed, with the statement that mends it.

``syncline doctor`` shows all findings. Of those of severity error, ``syncline run`` refuses to start on one about the
whole source, and leaves out the tables that have one of their own.
Nothing here writes, creates or waits for a lock.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncline.capture.preflight.look import look_at
from syncline.capture.preflight.outbox import check_outbox
from syncline.capture.preflight.publication import check_publication
from syncline.capture.preflight.server import check_open_transactions, check_replication, check_room, check_server
from syncline.capture.preflight.slot import check_slot
from syncline.capture.preflight.tables import check_tables
from syncline.capture.source import SourceConfig, connect, translated
from syncline.errors import Misconfigured
from syncline.finding import Finding

__all__ = ["preflight", "refuse"]

_CHECKS = (
    check_server,
    check_room,
    check_replication,
    check_tables,
    check_publication,
    check_outbox,
    check_slot,
    check_open_transactions,
)


def preflight(config: SourceConfig, control_schema: str = "syncline") -> list[Finding]:
    """Look at a source from every side that capture depends on; findings in the order of the checks, ok ones too.

    Raises:
        Unavailable: the server can't be reached with ``source.dsn``.
        Misconfigured: it refuses the login, or a pattern of the configuration can't be read.
    """
    dsn = config.plain
    connection = connect(dsn, timeout_s=config.connect_timeout_s, application="syncline-preflight")
    with connection, translated(dsn):
        look = look_at(config, connection, *config.never(control_schema))
        return [finding for check in _CHECKS for finding in check(look)]


def refuse(findings: Sequence[Finding]) -> None:
    """Raise ``Misconfigured`` for the findings of severity error, with the first one's remedy; else return."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first, more = errors[0], len(errors) - 1
        hint = f" (and {more} more, which `syncline doctor` shows)" if more else ""
        raise Misconfigured(f"{first.subject}: {first.message}{hint}", remedy=first.remedy, code=first.code)
