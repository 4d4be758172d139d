"""The options of ``pdv-launch``, derived from the fields of the configuration, and their sources.

A value comes from the command line, else from the environment (``PDV_…``), else from the YAML file
of ``--config``, else it is the field's default.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import yaml

from launcher.topology_file import read_topology_file
from launcher.yaml_file import read_yaml_map
from pdv_mp.config import (
    ConfigError,
    EngineConfig,
    OptionInfo,
    flag_name,
    option_groups,
    option_info,
)
from pdv_mp.speculative_config import ngram_of
from pdv_mp.topology import ROWS, topology_of

ENVIRONMENT_PREFIX = "PDV_"
ENVIRONMENT_CONFIG = "PDV_CONFIG"

_SIZE = re.compile(r"(\d{1,20}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Integer(click.IntRange):
    """A whole number; errors call it that."""

    name = "integer"


class Number(click.FloatRange):
    """A number; errors call it that."""

    name = "number"


class NumberOrWord(Integer):
    """A whole number, or one of some words."""

    def __init__(self, info: OptionInfo) -> None:
        super().__init__(_whole(info.minimum), _whole(info.maximum))
        self._words = info.words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word as it is."""
        text = str(value).strip().lower()
        if text in self._words:
            return text
        if not re.fullmatch(r"[+-]?\d+", text):
            self.fail(f"{value!r} is neither a number nor {' or '.join(self._words)}.", param, ctx)
        return super().convert(value, param, ctx)


class SizeType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, with an optional suffix K, M, G or T (powers of 1024)."""

    name = "bytes"

    def __init__(self, info: OptionInfo) -> None:
        self._range = Integer(_whole(info.minimum), _whole(info.maximum))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Bytes as an integer."""
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size such as 268435456, 256M or 1.5G.", param, ctx)
        size = float(match[1]) * _UNITS[match[2].upper()]
        return self._range.convert(round(size), param, ctx)


@dataclass(frozen=True, slots=True)
class Setting:
    """One option: ``group`` is the part of EngineConfig that has it, empty for the topology.

    ``type`` is the click type that parses and checks a text.
    """

    group: str
    name: str
    default: Any
    type: Any
    info: OptionInfo
    is_bool: bool = False

    @property
    def flag(self) -> str:
        """``--max-num-seqs``."""
        return flag_name(self.name)

    @property
    def environment(self) -> str:
        """``PDV_MAX_NUM_SEQS``."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """The range in words, empty if there is none; choices are in the metavar."""
        low = "" if self.info.minimum is None else f"{self.info.minimum:g}"
        high = "" if self.info.maximum is None else f"{self.info.maximum:g}"
        if low and high:
            return f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}" if high else ""

    def convert(self, value: Any, source: str) -> Any:
        """A text or a YAML scalar as this option's value. Raises ConfigError naming ``source``."""
        if value is None:
            return self.default
        if isinstance(value, (Mapping, list, tuple)):
            raise ConfigError(f"{source}: expected one value, not a list or a map")
        try:
            return self.type.convert(str(value), None, None)
        except click.BadParameter as error:
            raise ConfigError(f"{source}: {error.message}") from error


def settings() -> tuple[Setting, ...]:
    """All options in the order of their declaration."""
    found = [
        Setting(
            "",
            "topology",
            EngineConfig().topology,
            click.STRING,
            OptionInfo("which process hosts which stage", tuple(ROWS)),
        ),
        Setting(
            "",
            "topology_file",
            None,
            click.STRING,
            OptionInfo(
                "YAML file with a topology of one's own: its replicas, and its workers with name, "
                "stages, threads, max_batch and device",
                metavar="FILE",
            ),
        ),
    ]
    for group_name, group in option_groups().items():
        hints = get_type_hints(group)
        for field in dataclasses.fields(group):
            info = option_info(field)
            kinds = set(get_args(hints[field.name]) or (hints[field.name],)) - {type(None)}
            (kind,) = kinds - {str} if info.words else kinds
            found.append(
                Setting(
                    group_name,
                    field.name,
                    field.default,
                    _click_type(kind, info),
                    info,
                    is_bool=kind is bool,
                )
            )
    return tuple(found)


def _click_type(kind: type[Any], info: OptionInfo) -> Any:
    if info.metavar == "BYTES":
        return SizeType(info)
    if info.words:
        return NumberOrWord(info)
    if info.choices:
        return click.Choice(info.choices)
    if kind is bool:
        return click.BOOL
    if kind is int:
        return Integer(_whole(info.minimum), _whole(info.maximum))
    if kind is float:
        return Number(info.minimum, info.maximum)
    return click.STRING


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


class SettingOption(click.Option):
    """A click option made from a :class:`Setting`; it has no default, so that "given" is known."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        flag = setting.flag
        self._names = f"{flag} / --no-{flag[2:]}" if setting.is_bool else flag
        declared = [self._names] if setting.is_bool else [flag, *setting.info.aliases]
        super().__init__([*declared, setting.name], type=setting.type, default=None)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The option's two columns in the help."""
        setting = self.setting
        info = setting.info
        notes = []
        if setting.allowed:
            notes.append(setting.allowed)
        if setting.default is not None:
            notes.append(f"default {yaml.safe_dump(setting.default).splitlines()[0]}")
        notes.append(setting.environment)
        if info.aliases:
            notes.append(f"also {', '.join(info.aliases)}")
        metavar = info.metavar or "|".join(info.choices)
        if not metavar and not setting.is_bool:
            metavar = "X" if isinstance(setting.default, float) else "N"
        return f"{self._names} {metavar}".rstrip(), f"{info.help}  [{'; '.join(notes)}]"


@dataclass(frozen=True, slots=True)
class Values:
    """Every option's value by name, where it came from, and what should be warned of."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]
    warnings: tuple[str, ...]

    def config(self) -> EngineConfig:
        """The configuration. Raises ConfigError for values that do not go together."""
        values = dict(self.values)
        file = values.pop("topology_file")
        if file is None:
            return EngineConfig.from_options(**values)
        if self.sources["topology"] != "default":
            raise ConfigError(
                f"--topology {values['topology']} and --topology-file {file} exclude each other"
            )
        table = read_topology_file(Path(file))
        values["topology"] = table.name
        return dataclasses.replace(EngineConfig.from_options(**values), table=table)

    def as_yaml(self) -> str:
        """A YAML file that ``--config`` accepts; the source of each value is its comment."""
        lines = []
        group = ""
        for setting in settings():
            if setting.group != group:
                group = setting.group
                lines.append((f"{group}:", ""))
            printed = self._printed(setting.name)
            # Other styles put a line break where one is, which ends a value here.
            breaks = isinstance(printed, str) and printed.splitlines() != [printed]
            dumped = yaml.safe_dump(
                printed,
                default_flow_style=True,
                default_style='"' if breaks else None,
                width=10**9,
                allow_unicode=True,
            )
            value = dumped.splitlines()[0]
            indent = "  " if setting.group else ""
            lines.append((f"{indent}{setting.name}: {value}", self.sources[setting.name]))
        width = max(len(text) for text, _ in lines) + 2
        return "\n".join(f"{text:<{width}}# {source}" if source else text for text, source in lines)

    def without_drafts(self, config: EngineConfig) -> Iterator[str]:
        """What should be warned of once it is known which models are served, and how.

        ``config``: these values, prepared.
        """
        meant = _meant(self.values, self.sources)
        drafts = config.model.draft_model is not None or ngram_of(config.speculation) is not None
        for name in ("num_speculative_tokens", "draft_controller", "max_speculative_tokens"):
            if name in meant and self.values[name] != 0 and not drafts:
                yield f"{flag_name(name)} has no effect: no --draft-model is served"
        row = topology_of(config)
        if "groups" in meant and config.handoff.groups > 1 and "draft" not in row.lanes(0):
            yield (
                f"--groups {config.handoff.groups} has no effect: topology {row.name!r} does "
                "not draft in a process of its own"
            )

    def _printed(self, name: str) -> Any:
        by_file = name == "topology" and self.values["topology_file"] is not None
        return None if by_file else self.values[name]


def merge(
    given: Mapping[str, Any], environment: Mapping[str, str], config_file: Path | None
) -> Values:
    """The effective values: of ``given`` (the command line), environment, YAML, and defaults.

    Raises ConfigError for an unknown key of the file and for values of the wrong type.
    """
    in_file = read_config_file(config_file) if config_file is not None else {}
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in settings():
        name = setting.name
        if name in given:
            values[name], sources[name] = given[name], "command line"
        elif setting.environment in environment:
            text = environment[setting.environment]
            values[name] = setting.convert(text, f"environment variable {setting.environment}")
            sources[name] = setting.environment
        elif in_file.get(name) is not None:
            values[name] = setting.convert(in_file[name], f"{config_file}: {name}")
            sources[name] = str(config_file)
        else:
            values[name], sources[name] = setting.default, "default"
    warnings = (*_unknown_environment(environment), *_without_effect(values, sources))
    return Values(values, sources, warnings)


def _without_effect(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    meant = _meant(values, sources)
    asked = values["enable_prefix_caching"] and "enable_prefix_caching" in meant
    if asked and values["kv_handoff"] != "pool":
        yield (
            f"--enable-prefix-caching has no effect with --kv-handoff {values['kv_handoff']}: the "
            "prefill worker cannot reach the KV that would be kept"
        )
    length = values["num_speculative_tokens"]
    for name in ("draft_controller", "max_speculative_tokens"):
        if name in meant and length != "auto":
            yield (
                f"{flag_name(name)} has no effect with --num-speculative-tokens {length}, which "
                "fixes the draft length"
            )
    for setting in settings():
        if setting.group == "http" and setting.name in meant and values["http_port"] is None:
            yield f"{flag_name(setting.name)} has no effect without --http-port"


def _meant(values: Mapping[str, Any], sources: Mapping[str, str]) -> set[str]:
    """Options that somebody gave; a file may have defaults that were printed into it."""
    return {
        setting.name
        for setting in settings()
        if sources[setting.name] in ("command line", setting.environment)
        or (sources[setting.name] != "default" and values[setting.name] != setting.default)
    }


def _unknown_environment(environment: Mapping[str, str]) -> Iterator[str]:
    known = {setting.environment for setting in settings()} | {ENVIRONMENT_CONFIG}
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            yield f"environment variable {name} is not an option and is ignored" + _suggest(
                name, known
            )


def read_config_file(path: Path) -> dict[str, Any]:
    """The options of a YAML file by name, still unconverted.

    Keys are option names, ``-`` and ``_`` alike, at the top level or within their group
    (``scheduling: {max-num-seqs: 8}``). Raises ConfigError naming the file and the key.
    """
    document = read_yaml_map(path, "--config", "options")
    groups = {setting.group for setting in settings() if setting.group}
    found: dict[str, Any] = {}
    for key, value in document.items():
        group = _plain(key)
        if group in groups and value is None:
            continue  # a heading of which all options are left out
        if group in groups and isinstance(value, dict):
            known = {setting.name for setting in settings() if setting.group == group}
            for inner, inner_value in value.items():
                _add(found, path, inner, inner_value, known, f" in {group!r}")
        else:
            _add(found, path, key, value, {setting.name for setting in settings()}, "")
    return found


def _plain(key: Any) -> str:
    return str(key).replace("-", "_")


def _add(
    found: dict[str, Any], path: Path, key: Any, value: Any, known: set[str], where: str
) -> None:
    name = _plain(key)
    if name not in known:
        raise ConfigError(f"{path}: unknown option {key!r}{where}{_suggest(name, known)}")
    if name in found:
        raise ConfigError(f"{path}: option {name!r} is given twice")
    found[name] = value


def _suggest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
