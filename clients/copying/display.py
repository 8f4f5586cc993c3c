"""The display of a file copy on stderr: a bar on a terminal, and the reason for a wait."""

from __future__ import annotations

import sys
from typing import Any, Self

from tqdm import tqdm


class Display:
    """A bar of `size` bytes, or of an unknown number; none if stderr is not a terminal."""

    def __init__(self, name: str, size: int | None) -> None:
        self._name = name
        self._said: set[str] = set()
        self._bar: tqdm[Any] = tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, disable=None)

    def moved(self, size: int) -> None:
        self._bar.update(size)

    def complete(self) -> None:
        """Show the bar as full, including the bytes that an earlier run moved."""
        if self._bar.total is not None:
            self._bar.update(self._bar.total - self._bar.n)

    def say(self, sentence: str) -> None:
        """Print the sentence on stderr, once, also without a terminal."""
        if sentence not in self._said:
            self._said.add(sentence)
            tqdm.write(f"{self._name}: {sentence}", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
