"""The replication slot, and what the server does with its WAL while Syncline is away."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from syncline.capture.preflight.look import Look, SlotState
from syncline.finding import Finding, size

__all__ = ["check_slot"]


def check_slot(look: Look) -> Iterator[Finding]:
    """Whether the slot is ours, whole and free, and how much WAL it may keep."""
    slot, subject = look.slot, f"slot {look.config.slot}"
    if slot is None:
        yield Finding("SL-SLOT", "ok", subject, "It will be created.")
    elif slot.kind != "logical" or slot.plugin != "pgoutput" or slot.database != look.server.database:
        yield Finding(
            "SL-SLOT",
            "error",
            subject,
            f"It is a {slot.kind} slot of plugin {slot.plugin or 'none'}, database {slot.database or 'none'}; "
            f"pgoutput in {look.server.database} is needed.",
            "Choose another name with source.slot, or drop that slot if nothing uses it: "
            f"SELECT pg_drop_replication_slot({sql.quote(look.config.slot)});",
        )
    else:
        findings = list(_check_our_slot(look.config.slot, slot))
        yield from findings or [Finding("SL-SLOT", "ok", subject, f"It keeps {size(slot.retained)} of WAL.")]
    yield from _check_retention(look)


def _check_our_slot(name: str, slot: SlotState) -> Iterator[Finding]:
    subject, drop = f"slot {name}", f"SELECT pg_drop_replication_slot({sql.quote(name)});"
    if slot.wal_status == "lost" or slot.invalidation:
        yield Finding(
            "SL-SLOT-LOST",
            "error",
            subject,
            f"It is lost ({slot.invalidation or 'the WAL it needed was removed'}): changes are missing for ever.",
            "`syncline resync`, then `syncline run`, which makes it anew and reads every table again.",
        )
    elif slot.wal_status == "unreserved":
        yield Finding(
            "SL-SLOT-LOST",
            "warning",
            subject,
            f"It needs {size(slot.retained)} of WAL, more than max_slot_wal_keep_size: a checkpoint may lose it.",
            "Run Syncline now, or raise the limit: ALTER SYSTEM SET max_slot_wal_keep_size = -1; "
            "SELECT pg_reload_conf();",
        )
    if slot.two_phase:
        yield Finding(
            "SL-SLOT-TWO-PHASE",
            "error",
            subject,
            "It was made with two_phase, which delivers prepared transactions before they commit.",
            f"{drop} then `syncline resync`, and `syncline run`, which makes it anew and reads every table again.",
        )
    if slot.active_pid is not None and slot.held_by.startswith("syncline"):
        yield Finding("SL-SLOT", "ok", subject, f"A running Syncline streams from it (pid {slot.active_pid}).")
    elif slot.active_pid is not None:
        yield Finding(
            "SL-SLOT-BUSY",
            "error",
            subject,
            f"Another program streams from it (pid {slot.active_pid}, application {slot.held_by or 'unnamed'!r}).",
            f"Stop that program (SELECT pg_terminate_backend({slot.active_pid});), or choose another source.slot.",
        )


def _check_retention(look: Look) -> Iterator[Finding]:
    """What happens to the source while Syncline is away: either its disk fills, or the slot is lost at a limit."""
    server, slot = look.server, look.slot
    if server.keep_mb < 0:
        yield Finding(
            "SL-WAL-LIMIT",
            "warning",
            "max_slot_wal_keep_size",
            "It is unlimited: while Syncline is stopped, WAL grows until the server's disk is full.",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(); (what the disk can spare)",
        )
    elif slot is not None and slot.safe_wal_size is not None and slot.safe_wal_size < server.keep_mb * 2**20 // 5:
        yield Finding(
            "SL-WAL-LIMIT",
            "warning",
            "max_slot_wal_keep_size",
            f"Slot {look.config.slot} is lost after {size(max(slot.safe_wal_size, 0))} more of WAL.",
            "Run Syncline, or raise max_slot_wal_keep_size.",
        )
    else:
        yield Finding(
            "SL-WAL-LIMIT", "ok", "max_slot_wal_keep_size", f"A slot may keep {size(server.keep_mb * 2**20)} of WAL."
        )
    if server.idle_s:
        yield Finding(
            "SL-IDLE-LIMIT",
            "warning",
            "idle_replication_slot_timeout",
            f"A slot that is unused for {server.idle_s} s is lost: Syncline must not be stopped for longer.",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
