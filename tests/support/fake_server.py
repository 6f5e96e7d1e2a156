"""A process that answers ``/readyz`` and does as it is told: ``python -m tests.support.fake_server ADDRESS FOLDER``.

On SIGTERM it writes the time into ``PORT.ended`` in FOLDER, and ends. A file ``PORT.deaf`` there makes it ignore that;
``PORT.broken`` makes it end at its start, with the exit code in that file.
"""

from __future__ import annotations

import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    folder = Path(sys.argv[2])
    print(f"fake server on {port}", flush=True)
    broken = folder / f"{port}.broken"
    if broken.exists():
        print("something is wrong here", flush=True)
        sys.exit(int(broken.read_text()))

    def ended(*_: object) -> None:
        (folder / f"{port}.ended").write_text(repr(time.monotonic()))
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if (folder / f"{port}.deaf").exists() else ended)
    HTTPServer((host, int(port)), _Handler).serve_forever()


if __name__ == "__main__":
    main()
