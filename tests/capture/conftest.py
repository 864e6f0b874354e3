"""What is captured from one version of PostgreSQL is captured from all of them."""

from __future__ import annotations

import pytest

from servers import POSTGRES_VERSIONS


@pytest.fixture(params=POSTGRES_VERSIONS, ids="postgres{}".format)
def postgres_version(request: pytest.FixtureRequest) -> int:
    return int(request.param)
