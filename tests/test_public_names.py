"""What `import syncline` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import syncline


def test_every_public_name_is_there() -> None:
    assert [name for name in syncline.__all__ if getattr(syncline, name).__name__ != name] == []
    assert sorted(syncline.__all__) == syncline.__all__
    assert set(syncline.__all__) <= set(dir(syncline))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = syncline.nothing


def test_importing_the_package_imports_no_driver() -> None:
    script = "import sys, syncline; print([m for m in ('duckdb', 'psycopg', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
