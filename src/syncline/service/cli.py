"""The command `syncline`: global options, the commands, and the translation of errors into exit codes.

    0  done, or asked to stop          2  usage or configuration
    1  internal error (a bug)          3  a server, a disk or a file is not there for now
    4  differences were found, or changes are known to be missing

130 and 141 are Ctrl-C and a reader that closed the output (``| head``), as shells say it.
Results go to stdout, talk and logs to stderr. A traceback is shown only with ``--debug``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from syncline import __version__
from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.service import (
    alerts,
    control,
    doctor,
    extras,
    mapping,
    outbox,
    periodic,
    plan,
    query,
    reconcile,
    reports,
    run,
    setup,
    status,
    triggers,
    verify,
)
from syncline.service.session import INTERRUPTED, Session, exit_code, talk, tell_error

__all__ = ["app", "exit_code", "main"]

app = typer.Typer(
    name="syncline",
    help="Keeps databases provably in step with PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UNREAD = 141  # as a shell says it: 128 + SIGPIPE
_ISSUES = "Please report it with the output of the same command with --debug."
# Global options are understood behind the command too.
_WITH_VALUE = {"--config", "-c", "--environment", "-e", "--log-level", "--set"}
_FLAGS = {"--debug", "--json-logs"}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"syncline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (syncline.yaml).")
    ] = None,
    environment: Annotated[
        str | None, typer.Option("--environment", "-e", metavar="NAME", help="Lay syncline.NAME.yaml over it.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log one JSON object per line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Read the options that all commands share."""
    overrides = dict(_assignment(text) for text in assignments or [])
    if log_level is not None:
        overrides["logging.level"] = log_level
    if json_logs:
        overrides["logging.json"] = "true"
    context.obj = Session(config, environment, debug, dict(overrides))


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip("."):
        raise Misconfigured("--set takes NAME=VALUE.", remedy="For example: --set apply.max_rows=1000")
    return name.strip(), value


app.command("init")(setup.init)
app.command("check")(setup.check)
app.command("config")(setup.config)
app.command("doctor")(doctor.doctor)
app.command("migrate")(control.migrate)
app.command("run")(run.run)
app.command("status")(status.status)
app.command("alerts")(alerts.alerts)
app.command("pause")(control.pause)
app.command("resume")(control.resume)
app.command("resync")(control.resync)
app.command("verify")(verify.verify)
app.command("reports")(reports.reports)
app.command("reconcile")(reconcile.reconcile)
app.command("plan")(plan.plan)
app.command("apply")(plan.apply)
app.command("query")(query.query)
app.add_typer(mapping.app, name="mapping")
app.add_typer(outbox.app, name="outbox")
app.add_typer(triggers.app, name="triggers")
app.add_typer(periodic.app, name="periodic")
app.command("demo")(extras.demo)
app.command("bench", context_settings=extras.PASS_ON, add_help_option=False)(extras.bench)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. Never returns, never shows a traceback of its own accord."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _Interrupt() as interrupt:
        _run(given, interrupt)


class _Interrupt:
    """Remembers Ctrl-C: libraries that look for it while they work, as databases inside the process do, end with an
    error of their own instead."""

    asked = False

    def __enter__(self) -> _Interrupt:
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


def _run(given: list[str], interrupt: _Interrupt) -> None:
    try:
        app(args=_hoisted(given), prog_name="syncline")
    except SynclineError as error:
        if interrupt.asked:
            sys.exit(INTERRUPTED)
        if "--debug" in given:
            traceback.print_exc()
        tell_error(error)
        sys.exit(exit_code(error))
    except SystemExit as end:
        # The command line's library and rich end with 1, which is the code of a bug, when nobody reads on.
        sys.exit(_UNREAD if isinstance(end.__context__, BrokenPipeError) else end.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, one message
        if interrupt.asked:
            sys.exit(INTERRUPTED)
        failure = _output_failure() if isinstance(error, OSError) and error.filename is None else None
        if failure is None:
            _report_bug(error, debug="--debug" in given)
        else:
            tell_error(failure)
        sys.exit(exit_code(failure or error))


def _output_failure() -> SynclineError | None:
    """What is wrong with stdout, if something is, such as a full disk: a write that failed leaves no trace in it."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        message = f"The output can't be written: {error.strerror}."
        return Unavailable(message, remedy="Send it elsewhere, or free some space.")
    return None


def _report_bug(error: Exception, *, debug: bool) -> None:
    """Say where it happened; what the exception says may hold row values, so only ``--debug`` shows it."""
    if debug:
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    talk.print(f"Internal error: {type(error).__name__} at {place} (syncline {__version__}). This is a bug. {_ISSUES}")


def _hoisted(arguments: list[str]) -> list[str]:
    """The arguments with the global options first, wherever they were given; nothing behind ``--`` is touched."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word in _WITH_VALUE:
            value = next(words, None)
            if value is None:
                raise Misconfigured(f"{word} takes a value.", remedy="`syncline --help` lists the options.")
            ours += [word, value]
        elif word in _FLAGS or word.partition("=")[0] in {"--config", "--environment", "--log-level", "--set"}:
            ours.append(word)
        else:
            rest.append(word)
    return [*ours, *rest, *arguments[end:]]
