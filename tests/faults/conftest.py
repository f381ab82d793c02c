from __future__ import annotations

from collections.abc import Iterator

import pytest
from jobs import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks the ranks of all the jobs in these tests."""
    nursery = Nursery()
    yield nursery
    nursery.close()
