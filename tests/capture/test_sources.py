"""Every way of capturing is a whole source: one that lacks something is found here, not when an engine asks for it."""

from __future__ import annotations

from importlib import import_module

import pytest

from syncline.capture import SOURCES, Source


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_has_all_that_engines_ask_of_one(kind: str) -> None:
    module, _, name = SOURCES[kind].partition(":")
    found = getattr(import_module(module), name)
    asked = {name for name, value in vars(Source).items() if callable(value) and not name.startswith("_")}
    assert len(asked) > 15
    assert {name for name in asked if not callable(getattr(found, name, None))} == set()
