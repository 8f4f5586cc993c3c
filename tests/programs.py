"""Programs of this machine that tests run; `.ci/get-programs` installs those that are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Debian keeps these off PATH.
_PLACES = ["/usr/sbin", "/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]


class ProgramMissing(Exception):
    """A test that meets it is skipped, and fails where it is CI's (conftest.py)."""


def program(*names: str) -> str:
    """Where it is; of several that would do, the first that is there. Raises ProgramMissing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_PLACES])
    for name in names:
        if (found := shutil.which(name, path=path)) is not None:
            return found
    raise ProgramMissing(f"{names[0]} is not on this machine; .ci/get-programs installs it")
