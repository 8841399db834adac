"""A process that is no rank of a run but can reach its ports, and what it can find out on this machine."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

LISTENING = "0A"


def listening(pid: int) -> list[str]:
    """Return the addresses, in hexadecimal, at which a process listens for TCP connections."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            sockets.add(target[len("socket:[") : -1])
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in sockets:
                found.append(fields[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and the former as an IPv6 address, as the kernel writes them on a little-endian machine."""


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


class Trap:
    """Code that runs where it is unpickled: it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def join(port: int, rank: int, world_size: int, trap: str) -> None:
    """Take a rank's place in the group of a run whose secret is unknown, and send pickles to all."""
    import torch.distributed as dist

    timeout = timedelta(seconds=20)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    while not (names := [key for key in store.list_keys() if "group" in key]):
        pass
    prefix = names[0].partition("group")[0].rstrip("/")
    mine = dist.PrefixStore("group", dist.PrefixStore(prefix, store) if prefix else store)
    dist.init_process_group("gloo", store=mine, rank=rank, world_size=world_size, timeout=timeout)
    dist.new_group(backend="gloo", timeout=timeout)
    print("joined", flush=True)
    dist.all_gather_object([None] * world_size, Trap(trap))


if __name__ == "__main__":
    join(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
