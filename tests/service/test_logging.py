"""Logs: their form, their stream, and what never gets in."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from syncline.config import LoggingConfig
from syncline.service.logging import configure_logging, without_secrets

pytestmark = pytest.mark.usefixtures("logs_restored")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_text_lines_have_time_level_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig())
    structlog.get_logger().info("step applied", rows=3)
    structlog.get_logger().debug("not shown")
    (line,) = lines(capsys)
    assert line.startswith("timestamp='20")
    assert "level='info' event='step applied' rows=3" in line


def test_json_lines_are_json_from_us_and_from_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig(json_lines=True))
    structlog.get_logger().warning("alert raised", code="SL-GAP")
    logging.getLogger("library").warning("slow %s", "disk")
    logging.getLogger("library").info("not shown")
    ours, theirs = (json.loads(line) for line in lines(capsys))
    assert (ours["event"], ours["level"], ours["code"]) == ("alert raised", "warning", "SL-GAP")
    assert (theirs["event"], theirs["level"]) == ("slow disk", "warning")


def test_secrets_never_get_in(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingConfig())
    log = structlog.get_logger()
    log.error("refused", dsn="host=a password=hush", api_key="hush", at="postgresql://me:hush@db/x")
    log.error("postgresql://me:hush@db/x failed", text="password = 'hu''sh' host=a")
    said = "\n".join(lines(capsys))
    assert "hush" not in said
    assert "hu''sh" not in said
    assert "postgresql://***@db/x" in said


def test_an_exception_is_told_by_its_class_alone_unless_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    for debug, expected in ((False, False), (True, True)):
        configure_logging(LoggingConfig(), debug=debug)
        try:
            raise ValueError("row hush")
        except ValueError:
            structlog.get_logger().exception("failed")
        said = "\n".join(lines(capsys))
        assert "ValueError" in said
        assert ("hush" in said) is expected


def test_connection_strings_lose_their_passwords_whatever_is_in_them() -> None:
    assert without_secrets("postgresql://u:p%40@h:1/d?x=1") == "postgresql://***@h:1/d?x=1"
    assert without_secrets("postgresql://u:a/s3cret@h:1/d or u://a@s3cret@h/") == "postgresql://***@h:1/d or u://***@h/"
    assert without_secrets("host=h password='it\\'s' user=u") == "host=h password=*** user=u"
    assert without_secrets("PASSWORD=x") == "PASSWORD=***"
    assert without_secrets("the password was refused") == "the password was refused"
