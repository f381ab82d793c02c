"""Two emulated hosts, where they can be made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.namespaces import Hosts
from gradsync.errors import UsageError


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """On one network with links of 1 Gbit/s; skips the test, with the reason, where namespaces cannot be made."""
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(Hosts(2, "1gbit"))
        except UsageError as error:
            pytest.skip(str(error))
        yield hosts
