"""`python -m refresher_runner` and the command `refresher`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """The command line, whose exit code is the process's."""
    from refresher_runner.cli import main as cli

    if "LOCAL_RANK" not in os.environ:
        return cli(sys.argv[1:])
    from refresher_runner.engine.launch import end_rank

    try:
        code = cli(sys.argv[1:])
    except SystemExit as stop:
        code = stop.code
    return end_rank(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.exit(main())
