"""Print how many bytes of memory loading and iterating a dictionary takes: in a process of its own, which has no past.

`python -m pgdict.bench.peak TABLE ITEMS SIZE`
"""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

from pgdict.bench.contestants import PREFIX, value
from pgdict.dictionary import PgDict


def peak() -> int:
    """Return the most memory that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux `ru_maxrss` begins with what the parent had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def main(table: str, count: int, size: int) -> None:
    """Load and iterate."""
    content = value(size)
    with PgDict[str, str](table=table, create=False) as d:
        begin = peak()
        d.set_many((f"{PREFIX}:{i}", content) for i in range(count))
        deque(d.items(), maxlen=0)
        sys.stdout.write(f"{peak() - begin}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
