"""Reading a YAML file in which nothing is said twice."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pdv_mp.config import ConfigError


class _Loader(yaml.SafeLoader):
    """Plain YAML, but a key that a map has twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The map of a node."""
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def read_yaml_map(path: Path, flag: str, contents: str) -> dict[Any, Any]:
    """The map in the file that was given with ``flag``; an empty file is an empty map.

    Raises ConfigError, one sentence that names flag and file, if it cannot be read or is no map of
    ``contents``.
    """
    try:
        document = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read {flag} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(f"{flag} {path} is not plain YAML: {problem}{where}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{flag} {path} must be a map of {contents}")
    return document
