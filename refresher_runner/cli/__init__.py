"""The command `refresher`, a room for each kind of verb: what one trains, uses, looks at, compares. `words` has what they share.

Every import that takes time is inside the command that needs it: help is free of torch and Hydra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from refresher_runner.cli.words import app
from refresher_runner.console import tell
from refresher_runner.errors import RefresherError

from refresher_runner.cli import training, using, reproducing, looking, comparing  # noqa: F401, RUF100 # isort: skip -- help lists them in this order

# What a mistyped command raises: click's own, or that of the copy which newer Typers carry.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


def main(argv: Sequence[str]) -> int:
    """Run one command line; its exit code. A mistake of the user's is one line and a hint on stderr, never a traceback."""
    try:
        code = app(args=list(argv), prog_name="refresher", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except RefresherError as error:
        return tell(str(error), error.cure, error.exit_code)
    except _ClickException as error:
        return tell(
            error.format_message(),  # pyright: ignore[reportAttributeAccessIssue]
            "refresher --help lists the commands",
            2,
        )
    except (KeyboardInterrupt, typer.Abort):
        return tell("stopped", "", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; let Python close stdout in peace
        return 1
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return tell(f"{type(error).__name__}: {first}", "REFRESHER_TRACEBACK=1 shows where; please report it with the command", 1)
