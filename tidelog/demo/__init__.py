"""``tidelog demo``: the main job on one screen, with real processes. :func:`run` is all the command line needs."""

from tidelog.demo.runner import run

__all__ = ["run"]
