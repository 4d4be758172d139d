"""Entry point of ``pdv-bench``, also ``python -m bench.cli``: one subcommand per subject."""

from __future__ import annotations

import click

from bench.inflate.command import inflate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure the server, and make what is measured."""


main.add_command(inflate)

if __name__ == "__main__":
    main(prog_name="pdv-bench")
