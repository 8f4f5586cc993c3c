"""python -m clients send, python -m clients receive."""

import sys

from .cli.pipes import main

if __name__ == "__main__":
    sys.exit(main())
