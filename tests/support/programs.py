"""Programs of this machine that tests run; `.ci/get-programs` installs those that are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_PATH = os.environ.get("PATH", "").split(os.pathsep)
POSTGRES = os.environ.get("QUEUE_TEST_POSTGRES")  # the major version to test with; None: the oldest on this machine


class ProgramMissing(Exception):
    """Skips the test, or fails it in CI (conftest.py)."""


def program(*names: str) -> str:
    """Return the path of the first of these programs that exists. Raises ProgramMissing."""
    path = os.pathsep.join([*_PATH, "/usr/sbin", "/sbin"])  # Debian keeps these off PATH
    for name in names:
        if (found := shutil.which(name, path=path)) is not None:
            return found
    raise ProgramMissing(f"{names[0]} is not on this machine; .ci/get-programs installs it")


def postgres_program(name: str) -> str:
    """Return the path of this PostgreSQL program, of the version under test. Raises ProgramMissing."""
    versions = _postgres_versions()
    version = min(versions, default=0) if POSTGRES is None else int(POSTGRES)
    if (found := shutil.which(name, path=versions.get(version, ""))) is not None:
        return found
    if POSTGRES is None:
        return program(name)
    raise ProgramMissing(f"PostgreSQL {POSTGRES} is not on this machine; .ci/get-postgres unpacks it")


def _postgres_versions() -> dict[int, str]:
    """Return the folder of each major version's programs: Debian keeps them off PATH, side by side."""
    folders = (folder for place in _PATH for folder in Path(place).parent.glob("lib/postgresql/*/bin"))
    return {int(folder.parent.name): str(folder) for folder in folders if folder.parent.name.isdigit()}
