"""What the errors themselves promise: nothing that another library says reaches a message."""

from __future__ import annotations

import pyarrow as pa
import pytest

from syncline.errors import Policy, SynclineError, defect, policy


def test_a_defect_tells_its_class_and_its_place_but_never_the_value_that_it_quotes() -> None:
    with pytest.raises(pa.ArrowInvalid, match="hunter2") as caught:
        pa.array(["hunter2"]).cast(pa.int32())
    failure = defect("Target main", caught.value)
    assert "hunter2" not in str(failure)
    assert "Target main failed: ArrowInvalid at " in str(failure)
    assert failure.__cause__ is caught.value
    assert isinstance(failure, SynclineError)
    assert policy(failure) is Policy.STOP
