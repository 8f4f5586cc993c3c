"""Build and run the Dockerfile without a container engine, by unshare and overlayfs. It needs root.

The base image is this machine's system with a Python called `python`. Each RUN and COPY works in a layer over it. A
container has the result as its read-only root, and its own processes, mounts and loopback network. It has no
capabilities and cannot gain any. Of this machine it sees only the mounted files and the base system.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

from tests.support.live import REPOSITORY, STOPS_WITHIN, await_true

_NO_RIGHTS = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups")


class Instruction(NamedTuple):
    """One instruction; `value` is the text after name and flags, on one line."""

    name: str
    flags: dict[str, str]
    value: str

    @property
    def words(self) -> list[str]:
        """Return the words of the exec form, or as a shell splits them; of a HEALTHCHECK those of its CMD."""
        value = self.value.removeprefix("CMD ")
        return list(json.loads(value)) if value.startswith("[") else shlex.split(value)


@dataclass
class Image:
    """A stage of a Dockerfile: the files it adds to the base system, and how its containers start."""

    layer: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    workdir: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"


class Container:
    """A running container. `process` is unshare's; it ends with the container, with the same exit code."""

    def __init__(self, image: Image, process: subprocess.Popen[bytes], user: str) -> None:
        self.image = image
        self.process = process
        self._user = user

    @property
    def pid(self) -> int:
        """Return the pid of its first process on this machine."""
        await_true(lambda: bool(_children(self.process)))
        return int(_children(self.process))

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container as its user, like `docker exec` and a health check."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root", "--wd"]
        return subprocess.run(
            [*enter, "/usr/bin/setpriv", *_rights(self._user), *command],
            env=self.image.environment, capture_output=True, check=False, text=True, timeout=STOPS_WITHIN,
        )  # fmt: skip

    def stop(self) -> int:
        """Stop the container and return the exit code of its first process."""
        os.kill(self.pid, signal.Signals[self.image.stop_signal])
        return self.process.wait(STOPS_WITHIN)


def instructions(text: str) -> list[Instruction]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        name, _, rest = line.strip().partition(" ")
        flags = {}
        while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        found += [Instruction(name, flags, rest.strip())] if name else []
    return found


def context() -> list[str]:
    """Return the files that .dockerignore passes to the builder: the last matching pattern decides."""
    patterns = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    files = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file()]
    return [str(file) for file in files if not _is_ignored(file, patterns)]


def build(directory: Path, python: str) -> Image:
    """Build the Dockerfile's last stage in an empty directory. `python` is the base image's."""
    stages: dict[str, Image] = {}
    for step in instructions((REPOSITORY / "Dockerfile").read_text()):
        if step.name == "FROM":
            name = step.value.partition(" AS ")[2] or "last"
            image = stages[name] = base_image(directory / name, python)
        elif step.name == "COPY" and "from" in step.flags:
            source, target = step.words
            shutil.copytree(stages[step.flags["from"]].layer / source[1:], image.layer / target[1:], symlinks=True)
        else:
            _follow(step, image)
    return image


@contextmanager
def container(
    image: Image,
    *command: str,
    volumes: dict[Path, str],
    user: str | None = None,
    workdir: str | None = None,
    environment: dict[str, str] | None = None,
    beside: Container | None = None,
) -> Iterator[Container]:
    """Run the command, or the image's own; kill it when the block ends. `beside` shares its network."""
    image = Image(**vars(image) | {"environment": image.environment | (environment or {})})
    for place in volumes.values():
        (image.layer / place[1:]).mkdir(parents=True, exist_ok=True)
    user = user or image.user
    process = _start(
        image,
        command or image.command,
        mode="ro",
        volumes=[(str(source), place) for source, place in volumes.items()],
        tmpfs=["/tmp"],
        rights=_rights(user),
        workdir=workdir or image.workdir,
        beside=beside,
    )
    with process:  # waits for the process, and closes its output
        try:
            yield Container(image, process, user)
        finally:
            _kill(process)


@cache
def obstacle() -> str:
    """Return why this machine cannot run a container; "" if it can."""
    if os.getuid() != 0:
        return "only root may lay out a container's files"
    with TemporaryDirectory() as scratch:
        for name in ("upper", "work", "root"):
            Path(scratch, name).mkdir()
        options = f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work"
        mount = ["mount", "-t", "overlay", "-o", options, "overlay", f"{scratch}/root"]
        tried = subprocess.run(
            ["unshare", "--mount", "--pid", "--net", "--fork", *mount], capture_output=True, check=False, text=True
        )
    return tried.stderr.strip()


def base_python() -> str | None:
    """Return the base image's Python minor version, or that of this run if the machine lacks it."""
    minor = re.search(r"^FROM python:([0-9.]+)", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert minor is not None
    for candidate in (f"python{minor[1]}", sys.executable):
        printed = subprocess.run(
            [candidate, "-c", "import sys; print(sys._base_executable)"], capture_output=True, check=False, text=True
        ) if shutil.which(candidate) else None  # fmt: skip
        if printed and printed.returncode == 0:
            python = printed.stdout.strip()
            if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
                return python
    return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the container, then unshare; --kill-child does not work across a change of user."""
    for first in _children(process).split():
        with suppress(ProcessLookupError):
            os.kill(int(first), signal.SIGKILL)
    process.kill()


def _children(process: subprocess.Popen[bytes]) -> str:
    """Return the process ids of the children; none after the end."""
    try:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return ""


def base_image(layer: Path, python: str) -> Image:
    """Return this system with that Python as python and python3, and an empty layer over it."""
    local = layer / "usr/local/bin"
    local.mkdir(parents=True)
    (layer / "root").mkdir()  # readable by all, for a Python under /root
    for name in ("python", "python3"):
        (local / name).write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
        (local / name).chmod(0o755)
    return Image(layer)


def _follow(step: Instruction, image: Image) -> None:
    match step.name:
        case "RUN":
            run(image, step.value)
        case "COPY":
            _copy_context(image, step.words)
        case "ENV":
            pairs = dict(word.split("=", 1) for word in step.words)
            image.environment |= {
                name: value.replace("$PATH", image.environment["PATH"]) for name, value in pairs.items()
            }
        case "WORKDIR":
            image.workdir = step.value
            (image.layer / step.value[1:]).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = step.value
        case "CMD":
            image.command = step.words
        case "HEALTHCHECK":
            image.healthcheck = step.words
        case "STOPSIGNAL":
            image.stop_signal = step.value
        case "LABEL" | "EXPOSE" | "VOLUME":
            pass
        case _:
            raise NotImplementedError(step.name)


def run(image: Image, line: str) -> None:
    """Run a shell line as root, with write access. Raises AssertionError with its output."""
    machine = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    image = Image(**vars(image) | {"environment": machine | image.environment})
    process = _start(
        image,
        ["sh", "-e", "-c", line],
        mode="rw",
        workdir=image.workdir,
    )
    output, _ = process.communicate()
    assert process.returncode == 0, f"RUN {line}\n{output.decode()}"


def _start(
    image: Image,
    command: Sequence[str],
    *,
    mode: str,
    workdir: str,
    volumes: Sequence[tuple[str, str]] = (),
    tmpfs: Sequence[str] = (),
    rights: Sequence[str] = (),
    beside: Container | None = None,
) -> subprocess.Popen[bytes]:
    root, work = (Path(mkdtemp(prefix=name, dir=image.layer.parent)) for name in ("root-", "work-"))
    overlay = f"{mode},lowerdir=/,upperdir={image.layer},workdir={work}"
    setup: dict[str, Any] = {
        "root": str(root),
        "overlay": overlay,
        "volumes": volumes,
        "tmpfs": tmpfs,
        "rights": rights,
    }
    setup |= {"command": command, "workdir": workdir, "environment": image.environment}
    setup["own_network"] = mode == "ro" and beside is None
    network = ["--net"] if setup["own_network"] else []
    enter = ["nsenter", f"--target={beside.pid}", "--net"] if beside else []
    unshare = ["unshare", "--mount", "--pid", "--ipc", *network, "--fork"]
    return subprocess.Popen(
        [*enter, *unshare, sys.executable, str(REPOSITORY / "tests/deploy/container_init.py"), json.dumps(setup)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _rights(user: str) -> list[str]:
    number, _, group = user.partition(":")
    return [f"--reuid={number}", f"--regid={group}", *_NO_RIGHTS]


def _copy_context(image: Image, words: list[str]) -> None:
    *sources, target = words
    place = image.layer / image.workdir[1:]
    for file in context():
        for source in sources:
            if file == source:
                _copy_file(file, place / target / Path(file).name if target.endswith("/") else place / target)
            elif file.startswith(f"{source.rstrip('/')}/"):
                _copy_file(file, place / target / Path(file).relative_to(source))


def _copy_file(file: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / file, target)


def _is_ignored(file: Path, patterns: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!").rstrip("/")
        places = [str(place) for place in (file, *file.parents[:-1])]
        if any(
            fnmatch.fnmatch(f"/{place}", f"*/{plain[3:]}" if plain.startswith("**/") else f"/{plain}")
            for place in places
        ):
            ignored = not pattern.startswith("!")
    return ignored
