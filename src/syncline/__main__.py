"""The process of `syncline` (also `python -m syncline`), before anything of it is loaded, which takes a while."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Ctrl-C ends the process at once and without a word while it is still being loaded."""
    _fill_standard_streams()
    interrupted = signal.getsignal(signal.SIGINT)
    loading = interrupted is signal.default_int_handler
    if loading:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from syncline.service.cli import main as run

    if loading:
        signal.signal(signal.SIGINT, interrupted)
    run()


def _fill_standard_streams() -> None:
    """A stream that was closed (``>&-``) would give its number to the next file that is opened, such as the log's, and
    what is said there would be written into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


if __name__ == "__main__":
    main()
