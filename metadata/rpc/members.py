"""Which clients speak for registered agents: their places are not given to others. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MEMBERS_MAX: Final = 4_000
"""The agents heard last; those forgotten are known again with their next heartbeat."""


class Members:
    """The client that each agent epoch was heard from last, of one term."""

    def __init__(self) -> None:
        self._clients: OrderedDict[int, bytes] = OrderedDict()
        self._epochs: dict[bytes, int] = {}

    def heard(self, agent_epoch: int, client: bytes) -> None:
        """A heartbeat of ``agent_epoch`` was accepted, in a call of ``client``."""
        known = self._clients.get(agent_epoch)
        if known is not None and known != client:
            self._epochs.pop(known, None)
        earlier = self._epochs.get(client)
        if earlier is not None and earlier != agent_epoch:
            del self._clients[earlier]
        self._clients[agent_epoch] = client
        self._epochs[client] = agent_epoch
        self._clients.move_to_end(agent_epoch)
        if len(self._clients) > MEMBERS_MAX:
            _, oldest = self._clients.popitem(last=False)
            del self._epochs[oldest]

    def __contains__(self, client: bytes) -> bool:
        return client in self._epochs
