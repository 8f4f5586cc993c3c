"""python -m clients: the command `queue-service` in a checkout."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m clients"))
