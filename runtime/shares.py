"""Bounds that many peers share, so that none of them can take everybody's part. Pure.

===================  ============================================================================================
:class:`FairShare`   for what passes (calls, bodies): something is always left for whoever comes next
:class:`Turns`       for what waits: the peers' turns come round, however much each has brought
:class:`Places`      for what stays (watches, connections): all may be taken; the peer that holds most gives one up
===================  ============================================================================================

A peer is an address (:func:`peer_of`). Behind a proxy everybody is one peer, which is no worse than a common bound.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

SHARE_FACTOR: Final = 4
"""A peer may hold so many times what is left: alone four fifths of the limit, two of them four ninths each."""
IPV6_NETWORK_BITS: Final = 64
"""One machine may use all addresses of such a network."""

K = TypeVar("K", bound=Hashable)


def peer_of(address: str | None) -> str:
    """Whom ``address`` (of a socket's other end) counts as."""
    if address is None or ":" not in address:
        return address or "unknown"
    try:
        number = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(number.ipv4_mapped or ipaddress.IPv6Address(int(number) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS))


class FairShare:
    """``limit`` of something. A peer is refused more when it holds much compared with what is left for the others.

    The dynamic threshold of shared-memory switches: Choudhury and Hahne, "Dynamic queue length thresholds for
    shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._by_peer: Counter[str] = Counter()

    def has_room(self, peer: str, count: int = 1) -> bool:
        """Whether ``peer`` may hold ``count`` more."""
        return self._by_peer.get(peer, 0) + count <= SHARE_FACTOR * (self.limit - self.held - count)

    def take(self, peer: str, count: int = 1) -> bool:
        """Hold ``count`` more for ``peer``; False, and nothing is held, when it has its share."""
        if not self.has_room(peer, count):
            return False
        self.held += count
        self._by_peer[peer] += count
        return True

    def give(self, peer: str, count: int = 1) -> None:
        """Give back what was taken."""
        left = self._by_peer[peer] - count
        assert count >= 0 and left >= 0, f"{peer} gave back {-left} it never took"
        self.held -= count
        if left:
            self._by_peer[peer] = left
        else:
            del self._by_peer[peer]


class Turns(Generic[K]):
    """A queue in which peers take turns: whoever has brought many waits behind whoever has brought one."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, deque[K]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._peers)

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._peers.values())

    def append(self, key: K, peer: str) -> None:
        """At the end of what ``peer`` has brought."""
        self._peers.setdefault(peer, deque()).append(key)

    def pop(self, may: Callable[[str], bool]) -> K | None:
        """The first of the peer whose turn it is, among those who ``may``; None when nobody may."""
        peer = next((peer for peer in self._peers if may(peer)), None)
        if peer is None:
            return None
        waiting = self._peers[peer]
        key = waiting.popleft()
        if waiting:
            self._peers.move_to_end(peer)
        else:
            del self._peers[peer]
        return key

    def pop_those(self, are: Callable[[K], bool]) -> list[K]:
        """Of each peer those at the front that ``are``."""
        popped: list[K] = []
        for peer, waiting in list(self._peers.items()):
            while waiting and are(waiting[0]):
                popped.append(waiting.popleft())
            if not waiting:
                del self._peers[peer]
        return popped


class Places(Generic[K]):
    """Who holds places, and who gives one up when they are all taken. Keys are in the order of their latest use."""

    def __init__(self) -> None:
        self._peers: dict[str, OrderedDict[K, None]] = {}
        self._peer: dict[K, str] = {}

    def __len__(self) -> int:
        return len(self._peer)

    def __iter__(self) -> Iterator[K]:
        return iter(self._peer)

    def __contains__(self, key: K) -> bool:
        return key in self._peer

    def add(self, key: K, peer: str) -> None:
        """``peer`` has one more, used now."""
        assert key not in self._peer
        self._peer[key] = peer
        self._peers.setdefault(peer, OrderedDict())[key] = None

    def used(self, key: K) -> None:
        """Again, now."""
        self._peers[self._peer[key]].move_to_end(key)

    def discard(self, key: K) -> None:
        """Its place is free. Idempotent."""
        peer = self._peer.pop(key, None)
        if peer is not None:
            keys = self._peers[peer]
            del keys[key]
            if not keys:
                del self._peers[peer]

    def yielding(self, stays: Callable[[K], bool]) -> K | None:
        """Who is to give its place up: of the peer that has most, the one unused for longest that does not ``stay``.

        None when all of that peer's, and of every other's, do.
        """
        peers = self._peers
        if not peers:
            return None
        largest = max(peers, key=lambda peer: len(peers[peer]))
        found = self._first(largest, stays)
        if found is not None:
            return found
        others = (self._first(peer, stays) for peer in sorted(peers, key=lambda peer: -len(peers[peer])))
        return next((key for key in others if key is not None), None)

    def _first(self, peer: str, stays: Callable[[K], bool]) -> K | None:
        return next((key for key in self._peers[peer] if not stays(key)), None)
