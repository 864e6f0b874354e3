"""What goes on at a PostgreSQL source that will hurt before long: WAL that the slot makes it keep, and transactions
that stay open.

PostgreSQL manual, ch. "Replication Slots" and "The Cumulative Statistics System": a slot keeps WAL from the beginning
of the oldest transaction that is still open, and what that transaction wrote arrives only behind its commit.
"""

from __future__ import annotations

from typing import Any

import psycopg

from syncline.capture import LONG_TRANSACTION, SLOT_BUDGET, Pressure
from syncline.capture.slot import Slot
from syncline.capture.source import SourceConfig
from syncline.capture.transactions import open_transactions

__all__ = ["long_transactions", "slot_budget"]

_SPARE = 5  # what is left of the server's limit is little when it is a fifth


def long_transactions(connection: psycopg.Connection[Any], longest_s: float) -> list[Pressure]:
    """Those that wrote something and are open for longer than ``longest_s``, as far as our role may see how long."""
    return [
        Pressure(
            LONG_TRANSACTION,
            "warning",
            one.subject if one.gid is None else f"prepared {one.gid}",
            f"{one.words} What it wrote arrives only behind its commit, and what stands behind it may have to wait"
            f" ({one.subject}).",
            f"{one.remedy} Or raise source.long_transaction_s.",
        )
        for one in open_transactions(connection, longest_s)
        if one.age_s is not None
    ]


def slot_budget(slot: Slot | None, now: int, limit: int, config: SourceConfig) -> list[Pressure]:
    """Whether the slot is near the server's ``limit`` (bytes, negative: none), or, where there is none, keeps more WAL
    up to ``now`` than its budget."""
    if slot is None:
        return []
    if slot.safe_wal_size is not None and slot.safe_wal_size < limit // _SPARE:
        message = (
            f"Slot {slot.name} is lost after {_mega(slot.safe_wal_size)} more of WAL (max_slot_wal_keep_size is"
            f" {_mega(limit)})."
        )
        remedy = "See what holds it up (`syncline status`: a full log, a long transaction), or raise that limit."
        return [Pressure(SLOT_BUDGET, "critical", "slot", message, remedy)]
    if slot.safe_wal_size is None and now - slot.restart > config.slot_budget_bytes:
        message = (
            f"Slot {slot.name} makes the source keep {_mega(now - slot.restart)} of WAL, more than"
            f" source.slot_budget_bytes ({_mega(config.slot_budget_bytes)}), and nothing limits it."
        )
        remedy = (
            "See what holds it up (`syncline status`: a full log, a long transaction), and set the server's"
            " max_slot_wal_keep_size to what its disk can spare."
        )
        return [Pressure(SLOT_BUDGET, "warning", "slot", message, remedy)]
    return []


def _mega(count: int) -> str:
    return f"{max(0, count) / 2**20:,.0f} MiB"
