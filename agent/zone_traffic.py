"""Bytes that cross zones, counted on the connection they cross on."""

from __future__ import annotations


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
