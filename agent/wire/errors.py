"""Whose fault it was: what a peer may do wrong on the wire, and what we may."""

from __future__ import annotations


class DecodeError(Exception):
    """A complete frame is not a request of its API and version. The stream is intact, the request is not."""


class EncodeError(Exception):
    """A handler's answer does not fit its API: our fault, never the peer's."""
