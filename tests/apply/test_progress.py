"""How far behind a target is said to be."""

from __future__ import annotations

import time

import numpy as np

from syncline.apply.progress import Progress


def test_an_idle_source_is_not_behind_by_the_time_since_its_last_commit() -> None:
    progress = Progress()
    assert progress.lag_s(behind=True) == 0.0  # nothing was made visible yet
    progress.applied(1, np.array([int((time.time() - 3600) * 1e6)]))
    assert progress.lag_s(behind=True) >= 3600
    assert progress.lag_s(behind=False) == 0.0
    began = time.time()
    assert progress.lag_s(behind=True) <= time.time() - began + 60  # an entry without rows is on its way
    progress.applied(1, np.array([int((time.time() + 5) * 1e6)]))  # the source's clock is ahead
    assert progress.lag_s(behind=True) == 0.0
