"""What has to be known about a machine to judge its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from pgdict.bench.contestants import Arena
from pgdict.server import locate

_SETTINGS = ("server_version", "fsync", "synchronous_commit", "shared_buffers")


def machine(arena: Arena, location: str | None) -> dict[str, Any]:
    """Return them, without a name or an address."""
    with psycopg.connect(arena.url) as connection:
        postgresql = {name: connection.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in _SETTINGS}
        host = connection.info.host
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "postgresql": postgresql,
        "server": "embedded" if isinstance(locate(location), Path) else "the user's own",
        "connection": "unix socket" if host.startswith(("/", "@")) else "TCP",
        "files": _file_system(arena.directory),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str:
    """Return what kind of file system the contestants that live in files are on: some are memory."""
    with suppress(OSError, subprocess.CalledProcessError):
        said = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
        return said.stdout.strip()
    return "unknown"
