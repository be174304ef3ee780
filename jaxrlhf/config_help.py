"""What a config's fields are, in words: the rows of a recipe's `--help`.

Reads the same pydantic fields that `Config.load` checks, so the help cannot say something else.
Printing them is `cli.py`'s.
"""

import enum
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jaxrlhf.config import Config, config_in, config_in_items, plain_defaults
from jaxrlhf.config_file import to_line


class FieldDoc(NamedTuple):
    """One field. `default` is YAML text; a field without one is `required`."""

    path: str
    type: str
    default: str
    description: str
    required: bool = False


def describe(cls: type[Config]) -> list[FieldDoc]:
    """Every field, nested ones by their path (`ppo.lam`; `N` for the items of a list or mapping).

    Raises:
        TypeError: naming the fields that have no `Field(description=...)`.
    """
    bare = _undescribed(cls, "")
    if bare:
        raise TypeError(f"{cls.__name__}: no Field(description=...) for {', '.join(bare)}")
    return _rows(cls, "", plain_defaults(cls))


def group_title(cls: type[Config], group: str) -> str:
    """What a nested config is for: its field's description (`group` is a path such as `ppo`)."""
    field: FieldInfo | None = None
    for name in group.split("."):
        if name == "N":
            continue
        field = cls.model_fields[name]
        cls = config_in(field.annotation) or config_in_items(field.annotation) or cls
    return (field.description or "") if field else ""


def _undescribed(cls: type[Config], prefix: str) -> list[str]:
    bare = []
    for name, field in cls.model_fields.items():
        if not (field.description or "").strip():
            bare.append(f"{prefix}{name}")
        inner = config_in(field.annotation) or config_in_items(field.annotation)
        bare += _undescribed(inner, f"{prefix}{name}.") if inner else []
    return bare


def _rows(cls: type[Config], prefix: str, defaults: dict[str, Any]) -> list[FieldDoc]:
    rows = []
    for name, field in cls.model_fields.items():
        path, required = f"{prefix}{name}", field.is_required()
        inner, item = config_in(field.annotation), config_in_items(field.annotation)
        default = defaults.get(name)
        if inner is not None and (isinstance(default, dict) or required):
            rows += _rows(inner, f"{path}.", default or plain_defaults(inner))
            continue
        text = to_line(default) if name in defaults else ""
        rows.append(FieldDoc(path, _type(field), text, field.description or "", required))
        if inner or item:
            below = f"{path}." if inner else f"{path}.N."
            config = inner or item
            assert config is not None
            rows += _rows(config, below, plain_defaults(config))
    return rows


def _type(field: FieldInfo) -> str:
    bounds = [text for part in field.metadata for text in _bounds(part)]
    return ", ".join([_name(field.annotation), *bounds])


def _bounds(part: Any) -> list[str]:
    words = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
    words |= {"multiple_of": "a multiple of {}", "min_length": "at least {} long"}
    words |= {"max_length": "at most {} long", "pattern": "like {}"}
    values = {name: getattr(part, name, None) for name in words}
    return [words[name].format(value) for name, value in values.items() if value is not None]


_PLAIN = {str: "text", int: "int", float: "float", bool: "true or false", Path: "path"}


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_name(args[0]), *(t for part in args[1:] for t in _bounds(part))])
    if origin is Literal:
        return " | ".join(to_line(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return " | ".join(_name(part) for part in args)
    if origin in (list, tuple):
        return f"list of {_name(args[0])}"
    if origin is dict:
        return f"mapping of {_name(args[0])} to {_name(args[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(to_line(member.value) for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "group"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))
