"""An alert is over when what it told of works again, also when an earlier process raised it."""

from __future__ import annotations

import pytest

from reliability.harness import Rig
from servers import eventually
from syncline.errors import Misconfigured


def test_alerts_of_a_target_that_could_not_be_opened_are_resolved_once_it_streams(rig: Rig) -> None:
    rig.database.execute("create table t (id int primary key); insert into t values (1)")
    right = rig.target.read_bytes() if rig.target.exists() else b""
    rig.target.write_bytes(b"this is no database, and not a small one either" * 100)
    with pytest.raises((RuntimeError, Misconfigured)), rig.running():
        raise AssertionError("it must not run")
    assert rig.alerts() != []
    rig.target.unlink()
    if right:
        rig.target.write_bytes(right)
    with rig.running():
        eventually(lambda: rig.alerts() == [])
