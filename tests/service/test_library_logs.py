"""The engine as a library: what it logs goes to stderr or to the caller's `logging`, and never to stdout."""

from __future__ import annotations

import subprocess
import sys

import pytest

from syncline.catalog.repository import ControlSchema
from syncline.errors import Misconfigured
from syncline.pipeline.reports import Reports

RAISE = """
from syncline.catalog.repository import ControlSchema
from syncline.errors import Unavailable
from syncline.pipeline.reports import Reports
reports = Reports(ControlSchema("host=127.0.0.1 port=1 dbname=none"))
for _ in range(3):
    reports.alert("SL-DISK-FULL", "critical", "main", Unavailable("The disk is full."))
"""
OWN = "import logging, sys; logging.basicConfig(stream=sys.stderr, format='own %(name)s %(message)s')"
STRUCTLOG = (
    "import structlog; structlog.configure(logger_factory=structlog.PrintLoggerFactory(open('/dev/stderr', 'w')))"
)


@pytest.mark.parametrize(("setup", "start"), [("", "event="), (OWN, "own syncline event="), (STRUCTLOG, "")])
def test_logs_of_the_library_stay_off_stdout_and_an_open_alert_is_logged_once(setup: str, start: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", setup + RAISE], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == ""
    assert ended.stderr.count("alert raised") == 1, ended.stderr
    assert ended.stderr.startswith(start)


def test_what_ends_a_subject_is_told_once_for_each_cause_and_again_after_it_was_mended() -> None:
    told: list[str] = []
    reports = Reports(ControlSchema("host=127.0.0.1 port=1 dbname=none"), lambda error: told.append(error.message))
    for message in ("The disk is full.", "The disk is full.", "The file is locked."):
        reports.alert("SL-CONFIG", "critical", "main/main", Misconfigured(message), ends=True)
    assert told == ["The disk is full.", "The file is locked."]
    reports.recovered(["main/main"])
    reports.alert("SL-CONFIG", "critical", "main/main", Misconfigured("The file is locked."), ends=True)
    assert told[2:] == ["The file is locked."]
