"""What several contract suites begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.metadata_stores import STORES, Kept, metadata_url


@pytest.fixture(params=STORES)
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    with metadata_url(request.param, tmp_path, request) as url:
        kept = Kept(url)
        await kept.store.open("cluster-1")
        yield kept
        await kept.store.close()
