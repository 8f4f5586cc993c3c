"""`queue-service`: one command to run the service, to maintain its database, and to use it over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module

import shtab

from .. import copy_file
from .command_line import NAME, run
from .queues import add_queue_commands
from .receiving import RECEIVE, add_receive
from .sending import SEND, add_send
from .service import TOKEN, TOOLS, add_flags, add_service_path, run_service
from .working import WORK, add_work

SERVE = "Run the service. A flag takes precedence over its environment variable."
SHELLS = ("bash", "zsh", "fish")
COMPLETION = """Print a script that completes commands and options, for example in ~/.bashrc:

    source <(%(prog)s bash)
"""


def main(arguments: list[str] | None = None, prog: str = NAME) -> int:
    """Run the command and return its exit code: 0 only if all was done."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(prog)
    if arguments and arguments[0] in (*TOOLS, "token"):  # their own modules parse the rest
        return run_service(argparse.Namespace(command=arguments[0]), arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of the command
    if options.version:
        add_service_path()
        print(f"{NAME} {import_module('settings').VERSION}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    if options.command == "serve":
        return run_service(options, arguments)
    options.name = NAME
    return run(options)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Run a queue_service, maintain its database, and use it over HTTP."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")

    def add_command(name: str, description: str) -> argparse.ArgumentParser:
        first = description.partition(".\n")[0].partition(", for example")[0].partition("\n")[0].rstrip(".")
        command = commands.add_parser(
            name,
            help=first[0].lower() + first[1:],
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(parser=command)
        return command

    add_flags(add_command("serve", SERVE))
    add: Callable[[argparse.ArgumentParser], None]
    for name, description, add in (
        ("send", SEND, add_send),
        ("receive", RECEIVE, add_receive),
        ("work", WORK, add_work),
        ("copy", copy_file.COPY, copy_file.add_copy),
    ):
        add(add_command(name, description))
    add_queue_commands(add_command)
    for name, meaning in {**TOOLS, "token": TOKEN}.items():
        commands.add_parser(name, help=meaning)
    completion = add_command("completion", COMPLETION)
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(work=lambda options: print(shtab.complete(_parser(NAME), options.shell)) or 0)
    return parser
