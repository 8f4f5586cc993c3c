"""The first process of a container of tests/deploy/container.py: lays out what it sees, and becomes the command.

unshare … python container_init.py '{"layers": …}'
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

UP = 0x1  # IFF_UP
SET_FLAGS = 0x8914  # SIOCSIFFLAGS


def main() -> None:
    told = json.loads(sys.argv[1])
    root = Path(told["root"])
    mount("--make-rprivate", "/")
    mount("-t", "overlay", "-o", told["overlay"], "overlay", root)
    mount("-t", "proc", "proc", root / "proc")
    mount("--bind", "/dev", root / "dev")
    mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "shm", root / "dev/shm")
    for place in told["tmpfs"]:
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}{place}")
    for source, place in told["volumes"]:
        mount("--bind", source, f"{root}{place}")
    if told["own_network"]:
        bring_loopback_up()
    os.chroot(root)
    os.chdir(told["workdir"])
    os.execve("/usr/bin/setpriv", ["setpriv", *told["rights"], *told["command"]], told["environment"])


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


if __name__ == "__main__":
    main()
