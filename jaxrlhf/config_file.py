"""A YAML file as a plain tree that remembers on which line every key stood.

Scalars are read by YAML 1.2's core rules, because YAML 1.1 (what PyYAML does alone) reads `1e-5` as
text, `no` as false, `1:30` as 90 and `010` as 8. A file may start from another one (`base: x.yaml`,
relative to itself); mappings are merged key by key, everything else is replaced.

This file knows no field names and no types: `config.py` checks those. It expands no environment
variables and builds no Python objects from tags.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxrlhf.errors import ConfigError, nearest

Keys = tuple[str, ...]


class Tree(NamedTuple):
    """Plain values, and for each path of keys where it was written (`file.yaml:12`)."""

    values: dict[str, Any]
    origins: dict[Keys, str]


def read(path: str | Path) -> Tree:
    """Read a YAML file and the files it is based on; an empty file is an empty tree.

    Raises:
        ConfigError: naming the file and, where there is one, the line.
    """
    return _read(os.path.normpath(path), ())


def parse_value(text: str) -> Any:
    """One value as a config file would hold it: `1e-5`, `[1, 2]`, `null`, `a text`.

    Raises:
        ConfigError: if the text is not valid YAML.

    >>> parse_value("1e-5"), parse_value("no"), parse_value("[1, 2.5]")
    (1e-05, 'no', [1, 2.5])
    """
    return _parse(text, "its value").values["its value"]


def to_text(values: Any) -> str:
    """Write plain values as YAML that `read` (and YAML 1.1 readers too) give back unchanged."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def to_line(value: Any) -> str:
    """One value as YAML on one line, as an override would write it.

    >>> to_line([1, None, "no"]), to_line(1e-5), to_line(True)
    ("[1, null, 'no']", '1.0e-05', 'true')
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = merge(below, value)
        merged[key] = value
    return merged


# Reading.


def _read(path: str, above: tuple[str, ...]) -> Tree:
    tree = _parse_file(path)
    if "base" not in tree.values:
        return tree
    base, where = tree.values.pop("base"), tree.origins[("base",)]
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{where}: base = {base!r}: must be the path of another YAML file")
    base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
    chain = (*above, path)
    if os.path.realpath(base_path) in map(os.path.realpath, chain):
        raise ConfigError(f"{where}: base goes in a circle: {' -> '.join((*chain, base_path))}")
    if not os.path.exists(base_path):
        raise ConfigError(f"{where}: base = {base!r}: {_missing(base_path)}")
    below = _read(base_path, chain)
    return Tree(merge(below.values, tree.values), below.origins | tree.origins)


def _parse_file(path: str) -> Tree:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(_missing(path)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    tree = _parse(text, path)
    values, origins = tree
    if values[path] is None:
        return Tree({}, {})
    if not isinstance(values[path], dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, but holds {values[path]!r:.60}")
    return Tree(values[path], {keys[1:]: where for keys, where in origins.items()})


def _parse(text: str, name: str) -> Tree:
    """`{name: whatever the text holds}`, so that a scalar document has a place too."""
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    origins: dict[Keys, str] = {}
    value = _build(node, (name,), name, origins, ()) if node else None
    return Tree({name: value}, origins)


def _build(
    node: yaml.Node, keys: Keys, file: str, origins: dict[Keys, str], parents: tuple[int, ...]
) -> Any:
    where = f"{file}:{node.start_mark.line + 1}"
    if id(node) in parents:
        raise ConfigError(f"{where}: a YAML anchor that contains itself")
    parents = (*parents, id(node))
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _key(key_node, f"{file}:{line}")
            here = (*keys, key)
            if key in values:
                raise ConfigError(f"{file}:{line}: {key!r} stands twice, first at {origins[here]}")
            origins[here] = f"{file}:{line}"
            values[key] = _build(value_node, here, file, origins, parents)
        return values
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            origins[(*keys, str(index))] = f"{file}:{item.start_mark.line + 1}"
            items.append(_build(item, (*keys, str(index)), file, origins, parents))
        return items
    return _scalar(node, where)


def _key(node: yaml.Node, where: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag != _TAG + "str":
        shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        raise ConfigError(f"{where}: the key {shown} must be text (put it in quotes)")
    return node.value


def _scalar(node: yaml.Node, where: str) -> Any:
    reader = _READERS.get(node.tag.removeprefix(_TAG))
    if reader is None:
        raise ConfigError(f"{where}: the tag {node.tag!r} is not supported")
    try:
        return reader(node.value)
    except ValueError:
        raise ConfigError(f"{where}: {node.value!r:.60} is not a valid {node.tag}") from None


def _missing(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"{path}: no such file (and no folder {folder})"
    names = [n for n in sorted(os.listdir(folder)) if n.endswith((".yaml", ".yml"))]
    guess = nearest(os.path.basename(path), names)
    hint = f"; did you mean {os.path.normpath(os.path.join(folder, guess))}?" if guess else ""
    return f"{path}: no such file{hint}"


# YAML 1.2 core schema, plus `_` inside numbers (1_000_000).

_TAG = "tag:yaml.org,2002:"
_DIGITS = "-+0123456789"
_RESOLVERS: list[tuple[str, str, list[str]]] = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", list(_DIGITS)),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*_DIGITS, "."],
    ),
]
_READERS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 16) if text.startswith("0x") else int(text.replace("_", "")),
    "float": lambda text: float(re.sub(r"\.(inf|nan)", r"\1", text.lower().replace("_", ""))),
    "str": str,
}


class _Loader(yaml.SafeLoader):
    """Only its parser is used: `_build` makes the values. Its errors name better lines than C's."""


# C's is ten times as fast, where it is there.
_SafeDumper: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):
    """Quotes every text that either YAML 1.1 or `read` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # two equal lists are written twice, not as an anchor


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
