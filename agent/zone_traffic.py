"""Bytes that cross zones, counted on the connection they cross on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.roster import Roster


class ZoneBytes:
    """To and from one other zone."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0


class ZoneTraffic:
    """By zone of the other end. Names must be of a bounded number (see ``Roster.zone_label``)."""

    def __init__(self) -> None:
        self.by_zone: dict[str, ZoneBytes] = {}

    def of(self, zone: str) -> ZoneBytes:
        """The counters of one other zone, to be added to."""
        found = self.by_zone.get(zone)
        if found is None:
            found = self.by_zone[zone] = ZoneBytes()
        return found

    def byte_count(self) -> int:
        """Both directions, all zones."""
        return sum(counted.received + counted.sent for counted in self.by_zone.values())


class ClientPlace:
    """Where the client of one connection is, and the bytes it moves while that is another zone.

    A client says what it is called with each request; ``zone`` is empty before the first.
    """

    __slots__ = ("_crossing", "_early_bytes", "_traffic", "client_id", "host", "zone")

    def __init__(self, traffic: ZoneTraffic) -> None:
        self._traffic = traffic
        self._crossing: ZoneBytes | None = None
        self._early_bytes = 0
        self.client_id: str | None = None
        self.host = "unknown"
        self.zone = ""

    def meet(self, client_id: str | None, roster: Roster) -> None:
        """The client is called ``client_id`` from now on."""
        self.client_id = client_id
        self.zone = roster.client_zone(client_id, self.host)
        self._crossing = None
        if self.zone != roster.zone:
            self._crossing = self._traffic.of(roster.zone_label(self.zone))
            self._crossing.received += self._early_bytes
        self._early_bytes = 0

    def received(self, count: int) -> None:
        if self._crossing is not None:
            self._crossing.received += count
        elif not self.zone:
            self._early_bytes += count

    def sent(self, count: int) -> None:
        if self._crossing is not None:
            self._crossing.sent += count
