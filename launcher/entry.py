"""How both commands run: a mistake is one sentence on stderr, and an early exit is quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click


def run_command(command: click.Command, program: str, arguments: Sequence[str] | None) -> int:
    """Parses ``arguments`` (default: the process's) and runs the command; returns its exit status.

    What the command returns is its status, None being 0. A ClickException is printed as one
    sentence after the program's name; a UsageError's status is 2, any other's 1. KeyboardInterrupt
    is the caller's.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with command.make_context(program, given) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as ending:  # after --help
        return ending.exit_code
    except click.ClickException as error:
        click.echo(f"{program}: {error.format_message()}", err=True)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, and so may we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
