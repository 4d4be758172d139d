"""Entry point of ``pdv-bench``, also ``python -m bench.cli``: one subcommand per subject."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

import click

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "sweep": ("bench.sweep.command:sweep", "Compare topologies under load."),
        "report": ("bench.report.command:report", "Build the report from a folder of results."),
        "legacy": (
            "bench.legacy.command:legacy",
            "Measure as the source documents did, and honestly.",
        ),
        "concurrent": ("bench.concurrent.command:concurrent", "Ask one prompt many times at once."),
        "gateway": ("bench.gateway.command:gateway", "Measure what the HTTP gateway costs."),
        "peers": (
            "bench.peers.command:peers_command",
            "Compare with the engines that a user would pick instead.",
        ),
        "roofline": (
            "bench.roofline.command:roofline",
            "Say what a device allows at most for a model pair.",
        ),
        "calibrate": (
            "bench.emulation.calibrate_command:calibrate",
            "Write the cost table of a device, measured or computed.",
        ),
        "emulate": (
            "bench.emulation.command:emulate",
            "Where handoffs pay, asked of emulated devices.",
        ),
        "advise": (
            "bench.advice.command:advise",
            "Say which topology and draft length to use.",
        ),
        "ablate": ("bench.ablations.command:ablate", "Vary one design choice at a time."),
        "inflate": ("bench.inflate.command:inflate", "Make a stand-in of a big model's shape."),
    }
)
"""Subcommands: where each is, and what it does. They are imported when they are asked for."""

_EXTRA = ("scipy", "msgspec", "matplotlib", "jinja2", "tqdm")
"""Packages that only measurements need."""


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand; None if there is none of that name. Raises ClickException if the packages
        that it needs are not installed."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in _EXTRA:
                raise
            raise click.ClickException(
                f"pdv-bench {cmd_name} needs {error.name}: pip install 'pdv-mp[bench]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure the server, and make what is measured."""


if __name__ == "__main__":
    main(prog_name="pdv-bench")
