"""Start a container of tests/deploy/container.py: mount its files, then run its command in this process.

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
    setup = json.loads(sys.argv[1])
    root = Path(setup["root"])
    mount("--make-rprivate", "/")
    mount("-t", "overlay", "-o", setup["overlay"], "overlay", root)
    mount("-t", "proc", "proc", root / "proc")
    mount("--bind", "/dev", root / "dev")
    mount("-t", "tmpfs", "-o", "size=64m,mode=1777", "shm", root / "dev/shm")
    for place in setup["tmpfs"]:
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}{place}")
    for source, place in setup["volumes"]:
        mount("--bind", source, f"{root}{place}")
    if setup["own_network"]:
        bring_loopback_up()
    os.chroot(root)
    os.chdir(setup["workdir"])
    os.execve("/usr/bin/setpriv", ["setpriv", *setup["rights"], *setup["command"]], setup["environment"])


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


if __name__ == "__main__":
    main()
