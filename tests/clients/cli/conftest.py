"""The fixtures of the command's tests."""

from tests.clients.cli.commands import commands as commands
