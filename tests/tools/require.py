"""A test that needs an outside tool says so here: skipped where it is missing, failed where nothing may be missing."""

from __future__ import annotations

import os

import pytest

REQUIRE_ALL = "TIDELOG_REQUIRE_ALL"
"""Set to 1 where a missing tool is a failure of the gate, not a reason to skip."""


def require(condition: object, what: str, how: str) -> None:
    """Skip the calling test or fixture unless ``condition`` is true; fail it instead when TIDELOG_REQUIRE_ALL=1.

    :param what: what is missing, e.g. ``"versitygw (an S3 server)"``.
    :param how: how to get it, e.g. ``"make env builds it"``.
    """
    if condition:
        return
    reason = f"{what} is missing: {how}"
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
