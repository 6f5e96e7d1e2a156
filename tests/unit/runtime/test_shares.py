"""Nobody takes everybody's part: what passes leaves something for the next, what stays gives way where it is most."""

from __future__ import annotations

import pytest

from runtime.shares import FairShare, Places, Turns, peer_of


def fill(share: FairShare, peer: str) -> int:
    count = 0
    while share.take(peer):
        count += 1
    return count


def test_one_alone_gets_four_fifths_and_whoever_comes_next_gets_some() -> None:
    share = FairShare(1_000)
    assert fill(share, "a") == 800
    assert fill(share, "b") == 160
    assert fill(share, "c") == 32
    share.give("a", 800)
    assert fill(share, "b") > 400, "the room of those who leave is everybody's"
    assert share.held <= share.limit


def test_what_is_given_back_can_be_taken_again() -> None:
    share = FairShare(100)
    assert share.take("a", 30) and not share.take("a", 60) and share.take("a", 40)
    share.give("a", 70)
    assert share.held == 0 and not share._by_peer
    with pytest.raises(AssertionError):
        share.give("a")
    assert not share.take("b", 101)
    assert not share._by_peer, "those who were refused are not remembered"


def test_the_largest_peer_gives_up_what_it_used_longest_ago() -> None:
    places: Places[str] = Places()
    for key in ("b1", "a1", "a2", "a3", "b2"):
        places.add(key, key[0])
    places.used("a1")
    assert places.yielding(lambda _: False) == "a2"
    assert places.yielding({"a2", "a3"}.__contains__) == "a1"
    assert places.yielding(lambda key: key[0] == "a") == "b1", "when all of the largest stay"
    assert places.yielding(lambda _: True) is None
    for key in ("a2", "a2", "a3"):
        places.discard(key)
    assert places.yielding(lambda _: False) == "b1"
    assert len(places) == 3 and list(places) == ["b1", "a1", "b2"] and "a2" not in places
    for key in ("a1", "b1", "b2"):
        places.discard(key)
    assert places.yielding(lambda _: False) is None


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("10.0.0.1", "10.0.0.1"),
        (None, "unknown"),
        ("", "unknown"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("nonsense:", "nonsense:"),
    ],
)
def test_a_network_of_ipv6_is_one_peer(address: str | None, peer: str) -> None:
    assert peer_of(address) == peer


def test_peers_take_turns_however_much_each_has_brought() -> None:
    turns: Turns[str] = Turns()
    assert not turns and turns.pop(lambda _: True) is None
    for key in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.append(key, key[0])
    assert turns and sorted(turns) == ["a1", "a2", "a3", "b1", "c1", "c2"]
    assert [turns.pop(lambda _: True) for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    assert turns.pop(lambda peer: peer == "b") is None
    assert turns.pop(lambda peer: peer == "a") == "a3"
    assert turns.pop_those(lambda key: key == "c2") == ["c2"]
    assert not turns


def test_asking_for_room_takes_none() -> None:
    share = FairShare(5)
    assert share.has_room("a") and not share.has_room("a", 5)
    assert share.held == 0 and not share._by_peer
