"""`syncline verify TABLE --key K`: one record at the source and in every copy, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from syncline.config import Config
from syncline.service.session import DIFFERENT, print_json, stdout
from syncline.verify.keys import plain

if TYPE_CHECKING:
    from syncline.verify.record import Seen

__all__ = ["tell_record"]

_WIDE = 60  # characters of a value that a person is shown


def tell_record(config: Config, table: str, key: Sequence[str], target: str | None, *, as_json: bool) -> int:
    """Show it; the exit code. Values are shown, for that is what was asked for, and nowhere else."""
    from syncline.verify.record import record

    found = record(config, table, key, target)
    if as_json:
        print_json([_as_json(one) for one in found])
    else:
        for line in _lines(found):
            stdout.print(line)
        for one in found:
            _tell_more(one)
    return 0 if all(one.equal and one.state != "unknown" for one in found) else DIFFERENT


def _lines(found: Sequence[Seen]) -> list[str]:
    """A line for each field, a column for each place; what differs is marked with an asterisk."""
    rows = [["", *(_place(one) for one in found)], ["state", *(_state(one) for one in found)]]
    if any(one.version for one in found):
        rows.append(["version", *(one.shown or (str(one.version) if one.version else "") for one in found)])
    names = dict.fromkeys(name for one in found for name in (*one.fields, *one.differs))
    rows += [[name, *(_cell(one, name) for one in found)] for name in names]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _place(one: Seen) -> str:
    return f"target {one.target}" if one.target else f"source {one.source}"


def _state(one: Seen) -> str:
    if one.equal:
        return one.state
    return f"{one.state} *" if one.expected else f"{one.state} * (it should not be)"


def _cell(one: Seen, name: str) -> str:
    mark = " *" if name in one.differs else ""
    if name not in one.fields:
        return mark.strip()
    text = "NULL" if (value := plain(one.fields[name])) is None else " ".join(str(value).split())
    return (text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}...") + mark


def _tell_more(one: Seen) -> None:
    for letter in one.letters:
        stdout.print(f"{_place(one)}: a change of {letter.parked_at:%Y-%m-%d %H:%M:%S %Z} is parked: {letter.reason}")
    if one.reason:
        stdout.print(f"{_place(one)}: {one.reason}")


def _as_json(one: Seen) -> dict[str, Any]:
    letters = [{"version": x.version, "reason": x.reason, "parked_at": x.parked_at.isoformat()} for x in one.letters]
    names = ("source", "target", "state", "version", "shown", "expected", "equal", "reason")
    found: dict[str, Any] = {name: getattr(one, name) for name in names}
    fields = {name: plain(value) for name, value in one.fields.items()}
    return found | {"fields": fields, "differs": list(one.differs), "letters": letters}
