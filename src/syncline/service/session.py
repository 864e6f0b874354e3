"""What a command has at hand: the global options, the configuration they lead to, and where to speak."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from syncline.config import Config, hint, load_config
from syncline.errors import Gap, Misconfigured, SynclineError, Unavailable
from syncline.logs import logger
from syncline.service.logging import configure_logging, speaks_json, without_secrets

if TYPE_CHECKING:
    from syncline.catalog import ControlSchema

__all__ = [
    "DIFFERENT",
    "INTERRUPTED",
    "Session",
    "as_message",
    "chosen",
    "control_schema",
    "exit_code",
    "print_json",
    "session_of",
    "stdout",
    "talk",
    "tell_error",
]

_log = logger()

# What a command ends with beside the codes of errors: something differs or is missing; Ctrl-C, as a shell says it.
DIFFERENT, INTERRUPTED = 4, 130


class _Talk(Console):
    """Says what it can: work must not end because nobody hears of it, or the disk of a log file is full."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


# Talk goes to stderr, so that what is on stdout can be piped.
talk = _Talk(stderr=True, highlight=False, soft_wrap=True, markup=False)
# Read by a program, a line of a table is a line, however wide.
_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1_000
stdout = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=_width)


@dataclass
class Session:
    """One invocation of the command line."""

    file: Path | None = None
    environment: str | None = None
    debug: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def config(self, *, quiet: bool = False) -> Config:
        """Load the configuration and set up logging by it; ``quiet`` for commands that say themselves what an engine of
        their own meets. Raises ``Misconfigured``."""
        config = load_config(self.file, self.environment, self.overrides)
        logging = config.logging.model_copy(update={"level": "error"}) if quiet else config.logging
        configure_logging(logging, debug=self.debug)
        return config


def session_of(context: typer.Context) -> Session:
    """The session that the global options made."""
    found = context.find_object(Session)
    return found if found is not None else Session()


def control_schema(config: Config) -> ControlSchema:
    """The control schema that the configuration names."""
    from syncline.catalog import ControlSchema

    return ControlSchema(config.control_dsn, config.control.schema_name)


def as_message(error: SynclineError) -> str:
    """An error as the command line says it: the code, what is wrong, and on a line of its own what to do."""
    lines = [f"Error [{error.code}]:", *error.message.splitlines()]
    text = "\n  ".join(lines) if len(lines) > 2 else " ".join(lines)
    return without_secrets(f"{text}\n  {error.remedy}" if error.remedy else text)


def tell_error(error: SynclineError) -> None:
    """Say an error on stderr, as a line of JSON where the logs are that."""
    if speaks_json():
        _log.error(without_secrets(error.message), code=error.code, remedy=without_secrets(error.remedy))
    else:
        talk.print(as_message(error))


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends the command with."""
    codes: dict[type[BaseException], int] = {Misconfigured: 2, Unavailable: 3, Gap: 4}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def chosen(kind: str, name: str | None, known: Collection[str]) -> None:
    """Raise ``Misconfigured``, with the nearest right name, if ``name`` is given and is none of ``known``."""
    if name is not None and name not in known:
        raise Misconfigured(f"There is no {kind} {name}.", remedy=hint(name, known))


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")
    sys.stdout.flush()
