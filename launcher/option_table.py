"""Prints ``docs/options.md``: ``python -m launcher.option_table > docs/options.md``."""

from __future__ import annotations

from itertools import groupby

import click

from launcher import topology_file
from launcher.launch_command import make_command
from launcher.options import Setting, SettingOption, settings

_HEAD = """# Options of pdv-launch

Made by `python -m launcher.option_table > docs/options.md`; a test compares the two.

A value comes from the command line, else from the environment variable, else from the YAML file of
`--config` (nested by the headings below, or flat), else it is the default. `pdv-launch
--print-config` prints the effective values with their sources.
"""


def option_table() -> str:
    """The whole page."""
    parts = [_HEAD]
    for group, members in groupby(settings(), key=lambda setting: setting.group or "topology"):
        parts.append(f"\n## {group}\n\n| option | meaning | default | environment |")
        parts.append("\n| --- | --- | --- | --- |")
        parts += [_row(setting) for setting in members]
        parts.append("\n")
    parts.append("\n## On the command line only\n\n| option | meaning |\n| --- | --- |")
    parts += [_command_row(option) for option in make_command().params if _is_own(option)]
    parts.append(f"\n\n## A topology of one's own\n\n{topology_file.__doc__}")
    return "".join(parts)


def _is_own(option: click.Parameter) -> bool:
    """Whether it is shown by the command, but is no setting."""
    is_setting = isinstance(option, SettingOption)
    return isinstance(option, click.Option) and not is_setting and not option.hidden


def _command_row(option: click.Parameter) -> str:
    """Raises TypeError for what is no option."""
    if not isinstance(option, click.Option):
        raise TypeError(f"{option.name} is no option")
    value = f" {option.metavar}" if option.metavar else ""
    return f"\n| `{option.opts[0]}{value}` | {option.help} |"


def _row(setting: Setting) -> str:
    flag = f"--[no-]{setting.flag[2:]}" if setting.is_bool else setting.flag
    names = ", ".join(f"`{name}`" for name in (flag, *setting.info.aliases))
    limits = ", ".join((*setting.info.choices, *filter(None, [setting.allowed])))
    meaning = setting.info.help + (f" ({limits})" if limits else "")
    default = "" if setting.default is None else f"`{setting.default}`"
    return f"\n| {names} | {meaning} | {default} | `{setting.environment}` |"


if __name__ == "__main__":
    print(option_table(), end="")
