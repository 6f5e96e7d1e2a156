"""versitygw: an S3 server (Go, Apache 2.0) that shares no code with moto, built through Go's module proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.tools.require import require

VERSION = "v1.8.0"
MODULE_SUM = "h1:au+wI+aybno/STsQiSm35Uu6Q6iK5MWReQxgO6SEMFc="
"""Go's hash of the module's source at VERSION, as recorded in the binary."""
TOOLS = Path(__file__).parents[2] / ".cache" / "tools"
HOW = "`make test` builds it where Go 1.24 or newer is installed"


def build(tools: Path) -> Path | None:
    """Build the pinned version into the folder ``tools`` unless it is there; about 90 s. None without a Go toolchain.

    :raises subprocess.CalledProcessError: the build failed.
    :raises RuntimeError: what was built is not what is pinned.
    """
    binary = tools / "versitygw"
    go = shutil.which("go")
    if go is None:
        return None
    if binary.exists() and _is_pinned(go, binary):
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [go, "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"],
        check=True,
        capture_output=True,
        env=os.environ | {"GOFLAGS": "-mod=mod", "GOBIN": str(binary.parent.resolve()), "CGO_ENABLED": "0"},
    )
    if not _is_pinned(go, binary):
        binary.unlink()
        raise RuntimeError(f"versitygw {VERSION} does not have the pinned hash {MODULE_SUM}")
    return binary


def find() -> Path:
    """The binary in this checkout's cache; skips the calling test (or fails it, see ``require``) without it."""
    binary = TOOLS / "versitygw"
    require(binary.exists(), "versitygw (an S3 server)", HOW)
    return binary


def _is_pinned(go: str, binary: Path) -> bool:
    about = subprocess.run([go, "version", "-m", str(binary)], capture_output=True, text=True, check=False)
    return f"{VERSION}\t{MODULE_SUM}" in about.stdout
