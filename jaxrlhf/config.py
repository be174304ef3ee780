"""Typed configuration: YAML file + `a.b=c` overrides -> one frozen, checked object.

Only the mechanism lives here. A recipe writes its fields next to its code, as a subclass of
`Config`, each with a `Field(description=...)` that is also its line in the recipe's `--help`
(`config_help.py`). Precedence, lowest first: field defaults, `base:` files, the file, overrides in
the order given.

Mistakes come as one `ConfigError` that lists them all: file and line (or the override), the field,
the value, what is allowed, and the nearest field or choice. Nothing is read from the environment.
"""

import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, Union, get_args, get_origin

import pydantic
import pydantic_core

from jaxrlhf import config_file
from jaxrlhf.errors import ConfigError, nearest, one_of

__all__ = [
    "Config",
    "ConfigError",
    "Difference",
    "differences",
    "dump",
    "one_of",
    "save_resolved",
]


class Config(pydantic.BaseModel):
    """Base of every config: frozen, unknown fields are errors, defaults are checked too."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _true_is_not_one(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        # pydantic reads `epochs: true` as 1; nobody who writes that means it.
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field and _is_number_only(field.annotation):
            raise ValueError("must be a number, not true or false")
        return value

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or only the defaults) and apply overrides such as `ppo.lam=0.9`.

        A nested config that is given in part keeps what its parent's default says for the rest.
        List items are reached by index: `stages.0.steps=10`. An override's value is YAML; of a
        field that holds text, the text as it stands where YAML makes no text of it.

        Raises:
            ConfigError: listing everything that is wrong, each with its place.
        """
        if "base" in cls.model_fields:
            raise TypeError(f"{cls.__name__}.base: the name is taken by `base: other.yaml`")
        values, origins = config_file.read(path) if path is not None else ({}, {})
        defaults = plain_defaults(cls)
        problems = []
        for text in overrides:
            try:
                keys, value = _parse_override(cls, text)
                values = _replaced(values, keys, value, defaults)
                for n in range(1, len(keys)):
                    origins.setdefault(keys[:n], f"override {text!r}")
                origins[keys] = f"override {text!r}"
            except ConfigError as error:
                problems.append(f"override {text!r}: {error}")
        if problems:
            raise _joined(problems)
        values = _filled(cls, values, defaults)
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            source = os.path.normpath(path) if path is not None else "config"
            raise _joined(_explain(cls, error, values, origins, source)) from None


def dump(config: Config) -> str:
    """The whole config as YAML; `load` of that text gives an equal config."""
    return config_file.to_text(config.model_dump(mode="json"))


def save_resolved(config: Config, folder: str | Path) -> Path:
    """Write `folder/config.yaml` atomically (a crash leaves the old file or the new one)."""
    path = Path(folder) / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".config.yaml.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(dump(config))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class Difference(NamedTuple):
    """One field that two configs disagree on; `Ellipsis` stands for "does not have it"."""

    path: str
    a: Any
    b: Any


def differences(a: Config | Mapping[str, Any], b: Config | Mapping[str, Any]) -> list[Difference]:
    """The fields whose values differ, by path.

    Either side may be a plain tree (`config_file.read(path).values`): the config of an older run
    can then be compared even when its fields are no longer valid ones.
    """
    left, right = (
        _flat(x.model_dump(mode="json") if isinstance(x, Config) else dict(x)) for x in (a, b)
    )
    paths = [*left, *(path for path in right if path not in left)]
    pairs = [Difference(path, left.get(path, ...), right.get(path, ...)) for path in paths]
    return [pair for pair in pairs if pair.a != pair.b]


# Overrides and defaults.


def _parse_override(cls: type[Config], text: str) -> tuple[config_file.Keys, Any]:
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError("must look like field=value or group.field=value")
    if not _holds_text(cls, keys):
        return keys, config_file.parse_value(value)
    try:  # "Why: because" and "2" are prompts and names of files too
        parsed = config_file.parse_value(value)
    except ConfigError:
        return keys, value
    return keys, parsed if parsed is None or isinstance(parsed, str) else value


def _holds_text(cls: type[Config], keys: config_file.Keys) -> bool:
    parent = _config_at(cls, keys[:-1])
    field = parent.model_fields.get(keys[-1]) if parent else None
    return field is not None and set(_members(field.annotation)) <= {str, types.NoneType}


def _replaced(node: Any, keys: config_file.Keys, value: Any, default: Any, done: str = "") -> Any:
    """A copy of the tree `node` with the value at `keys`; what is absent starts from `default`."""
    if not keys:
        return value
    if node is None:
        node = default if isinstance(default, dict | list) else {}
    key, rest = keys[0], keys[1:]
    path = f"{done}.{key}" if done else key
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            allowed = f"has items 0 to {len(node) - 1}" if node else "is empty"
            raise ConfigError(f"{done} {allowed}")
        index = int(key)
        return [*node[:index], _replaced(node[index], rest, value, None, path), *node[index + 1 :]]
    if not isinstance(node, dict):
        raise ConfigError(f"{done} = {_short(node)} has no fields of its own")
    below = default.get(key) if isinstance(default, dict) else None
    return {**node, key: _replaced(node.get(key), rest, value, below, path)}


def plain_defaults(cls: type[Config]) -> dict[str, Any]:
    """The default of every field that has one, as a plain tree."""
    return {
        name: pydantic_core.to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in cls.model_fields.items()
        if not field.is_required() and not field.default_factory_takes_validated_data
    }


def _filled(cls: type[Config], values: dict[str, Any], defaults: Any) -> dict[str, Any]:
    """`sft: {steps: 5}` keeps the other fields of the parent's `sft = SftConfig(lr=1)`."""
    out = dict(values)
    for name, value in values.items():
        inner = config_in(cls.model_fields[name].annotation) if name in cls.model_fields else None
        if inner is not None and isinstance(value, dict):
            below = defaults.get(name)
            below = below if isinstance(below, dict) else plain_defaults(inner)
            out[name] = {**below, **_filled(inner, value, below)}
    return out


# Errors.


def _joined(problems: list[str]) -> ConfigError:
    if len(problems) == 1:
        return ConfigError(problems[0])
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} mistakes in the configuration:\n{lines}")


def _explain(
    cls: type[Config],
    error: pydantic.ValidationError,
    values: dict[str, Any],
    origins: dict[config_file.Keys, str],
    source: str,
) -> list[str]:
    found: dict[config_file.Keys, list[str]] = {}
    shown: dict[config_file.Keys, str] = {}
    for item in error.errors(include_url=False):
        keys = _place(cls, values, item["loc"])
        found.setdefault(keys, []).append(_reason(cls, keys, item))
        absent = item["type"] == "missing" or not keys
        shown[keys] = "" if absent else f" = {_short(item['input'])}"
    problems = []
    for keys, reasons in found.items():  # a union gives one error a member, all at one place
        prefixes = (keys[:n] for n in range(len(keys), 0, -1))
        where = next((origins[prefix] for prefix in prefixes if prefix in origins), source)
        name = f" {'.'.join(keys)}{shown[keys]}:" if keys else ""
        problems.append(f"{where}:{name} {' or '.join(dict.fromkeys(reasons))}")
    return problems


def _place(cls: type[Config], values: Any, loc: tuple[int | str, ...]) -> config_file.Keys:
    """The keys of an error, without the names of union members that pydantic puts in between."""
    node: Any = values
    keys: config_file.Keys = ()
    for part in loc:
        parent = _config_at(cls, keys)
        children: Any = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, dict) and part in children:
            node = children[part]
        elif parent is not None and part in parent.model_fields:
            node = None  # an absent value, or a default that is wrong
        else:
            continue
        keys = (*keys, str(part))
    return keys


def _reason(cls: type[Config], keys: config_file.Keys, item: Any) -> str:
    if item["type"] == "missing":
        return "a value is required"
    if item["type"] == "extra_forbidden":
        return _unknown(cls, keys)
    text = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
    text = text.replace("Input should be", "must be").replace("Input should have", "must have")
    if item["type"] in ("literal_error", "enum"):
        guess = nearest(item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        text += f"; did you mean {guess!r}?" if guess else ""
    return text


def _unknown(cls: type[Config], keys: config_file.Keys) -> str:
    parent = _config_at(cls, keys[:-1])
    names = list(parent.model_fields) if parent else []
    elsewhere = [path for path in _paths(cls) if path.split(".")[-1] == keys[-1]][:3]
    guesses = [repr(guess) for guess in (nearest(keys[-1], names), *elsewhere) if guess]
    if guesses:
        return f"unknown field; did you mean {' or '.join(guesses)}?"
    return f"unknown field; the fields here are {', '.join(names)}"


def _config_at(cls: type[Config], keys: config_file.Keys) -> type[Config] | None:
    of_item = False  # the number or name of an item: its field named the class already
    for key in keys:
        if of_item:
            of_item = False
            continue
        field = cls.model_fields.get(key)
        if field is None:
            return None
        one, many = config_in(field.annotation), config_in_items(field.annotation)
        if one is None and many is None:
            return None
        cls, of_item = one or many, one is None  # type: ignore[assignment]
    return cls


def _paths(cls: type[Config]) -> list[str]:
    paths = []
    for name, field in cls.model_fields.items():
        inner = config_in(field.annotation)
        paths += [f"{name}.{path}" for path in _paths(inner)] if inner else [name]
    return paths


def _short(value: Any) -> str:
    text = config_file.to_line(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists stay whole."""
    if not isinstance(node, Mapping) or (not node and path):
        return {path: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat


# Types.


def config_in(annotation: Any) -> type[Config] | None:
    """The config class of a field of type `X` or `X | None`."""
    members = [t for t in _members(annotation) if t is not type(None)]
    only = members[0] if len(members) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Config) else None


def config_in_items(annotation: Any) -> type[Config] | None:
    """The config class of the items of a list or tuple field, or of the values of a mapping."""
    for member in _members(annotation):
        if get_origin(member) in (list, tuple) and get_args(member):
            return config_in(get_args(member)[0])
        if get_origin(member) is dict:
            return config_in(get_args(member)[1])
    return None


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return (annotation,)


def _is_number_only(annotation: Any) -> bool:
    members = _members(annotation)
    return bool({int, float} & set(members)) and bool not in members
