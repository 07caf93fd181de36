"""What the processes of a server are, and what they hold. Linux only."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc, and at what the kernel of Linux tells"
)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


def workers(pid: int) -> set[int]:
    """The processes that gunicorn's first one has started and that live."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if alive(int(child))}


@dataclass(frozen=True)
class Burden:
    """What a server and its workers hold: threads, open files and bytes in memory."""

    threads: int
    files: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> "Burden":
        """That of gunicorn's first process and its workers."""
        pids = {pid, *workers(pid)}
        status = "\n".join(Path(f"/proc/{one}/status").read_text() for one in pids)
        return cls(
            sum(map(int, re.findall(r"^Threads:\s*(\d+)$", status, re.MULTILINE))),
            sum(len([*Path(f"/proc/{one}/fd").iterdir()]) for one in pids),
            sum(map(int, re.findall(r"^VmRSS:\s*(\d+) kB$", status, re.MULTILINE))) << 10,
        )
