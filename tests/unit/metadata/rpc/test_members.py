"""Which clients speak for agents: the latest of each epoch, and no more of them than there are agents."""

from __future__ import annotations

import pytest

from metadata.rpc import members
from metadata.rpc.members import Members


def test_an_agent_has_one_client_and_a_client_one_agent() -> None:
    known = Members()
    known.heard(1, b"a")
    known.heard(2, b"b")
    assert b"a" in known and b"b" in known and b"c" not in known
    known.heard(1, b"c")
    assert b"a" not in known and b"c" in known, "the agent is another process now"
    known.heard(3, b"c")
    known.heard(1, b"d")
    assert b"c" in known and b"d" in known, "it registered anew, and somebody else has its epoch of before"
    known.heard(2, b"d")
    assert b"b" not in known and b"d" in known


def test_those_heard_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_MAX", 2)
    known = Members()
    known.heard(1, b"a")
    known.heard(2, b"b")
    known.heard(1, b"a")
    known.heard(3, b"c")
    assert [client in known for client in (b"a", b"b", b"c")] == [True, False, True]
