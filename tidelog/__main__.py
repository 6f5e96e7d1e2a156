"""``python -m tidelog``: the same as the ``tidelog`` script."""

from tidelog.cli import main

main()
