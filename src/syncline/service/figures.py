"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["amount", "size", "source_line", "span"]


def size(count: float | None) -> str:
    """Bytes as ``1.4 GiB``; a dash for what is not known."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def span(seconds: float | None) -> str:
    """Seconds as ``120 ms``, ``4.2 s``, ``3 min`` or ``2.5 h``; a dash for what is not known."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def amount(count: float | None) -> str:
    """A whole number with separators; a dash for what is not known."""
    return "-" if count is None else f"{count:,.0f}"


def source_line(name: str, source: Mapping[str, Any]) -> str:
    """One source and its targets in one line."""
    parts = [f"{name}: {source.get('state', '')}, {size(source.get('lag_bytes'))} behind"]
    parts[0] += f", log {size(source.get('log', {}).get('size_bytes'))}"
    for table, load in source.get("loading", {}).items():
        done = load["bytes_done"] / load["bytes_total"] if load.get("bytes_total") else 0
        parts.append(f"loading {table} {min(done, 1):.0%} ({amount(load.get('rows'))} rows)")
    for target, status in source.get("targets", {}).items():
        parts.append(
            f"{target} {status.get('state', '')}: {amount(status.get('rows_applied'))} rows,"
            f" {amount(status.get('rows_per_s'))}/s, lag {span(status.get('lag_s'))}"
        )
    return " | ".join(parts)
