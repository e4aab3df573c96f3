"""`python -m refresher_runner` and the command `refresher`."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line, whose exit code is the process's."""
    from refresher_runner.cli import main as cli

    return cli(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
