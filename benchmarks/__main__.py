"""The command: runs the named benchmarks (or all), prints what they found, exits 1 if a required ratio was missed."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks import report, server

NAMES = ("single_writes", "backlog", "features", "file_copy", "memory")
ON_POSTGRESQL = ("nodes", "sustained")  # only when named: they need Debian's servers (.ci/get-programs)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the service; only ratios count.")
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"of {', '.join(NAMES)} (default: all of these), {', '.join(ON_POSTGRESQL)}",
    )
    names = parser.parse_args(arguments).names or NAMES
    if unknown := [name for name in names if name not in (*NAMES, *ON_POSTGRESQL)]:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are {', '.join((*NAMES, *ON_POSTGRESQL))}")
    print(report.machine(), server.settings(), sep="\n", flush=True)
    missed = []
    for name in names:
        start = time.monotonic()
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {str(module.__doc__).splitlines()[0]}", flush=True)
        found: report.Found = getattr(module, name)()
        print(report.table(found), f"  ({time.monotonic() - start:.0f} s)", sep="\n", flush=True)
        missed += [f"{name}: {figure.what}" for figure in found.figures if figure.missed]
    print("", *[f"MISSED  {what}" for what in missed] or ["Every required figure was reached."], sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
