"""The embedded log keeps the contract, from memory and from disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from log.embedded_place import EmbeddedPlace
from syncline.testing.log_suite import LogConformance


class TestEmbeddedLog(LogConformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> EmbeddedPlace:
        return EmbeddedPlace(tmp_path)


class TestEmbeddedLogWithoutTail(LogConformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> EmbeddedPlace:
        return EmbeddedPlace(tmp_path, tail_bytes=0)
