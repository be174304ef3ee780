"""The `jaxrlhf` command: pick a recipe, read its config, run it, turn user errors into one message.

`jaxrlhf --help` stays fast: recipes (and so jax) are imported only when one is asked for. What a
recipe does, its fields and their checks are the recipe's and `config.py`'s; none is known here.

Exit codes: 0 done; 2 something the user can put right (printed without a traceback); 3 a loss or
metric was not finite; 4 a guard stopped the run; 5 people have not answered all yet; 130 stopped
from the keyboard; 1 a bug, with its traceback.
"""

import argparse
import contextlib
import errno
import importlib
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxrlhf
from jaxrlhf import xla
from jaxrlhf.errors import UserError, nearest
from jaxrlhf.recipes import RECIPES

if TYPE_CHECKING:
    from jaxrlhf.config import Config
    from jaxrlhf.config_help import FieldDoc
    from jaxrlhf.recipes import Recipe

HELP_WIDTH = 100
EXAMPLES = (
    ("run it", "jaxrlhf rlhf --config configs/tiny/rlhf.yaml"),
    ("change a field", "jaxrlhf rlhf --config configs/tiny/rlhf.yaml output_dir=runs/mine"),
    ("list its fields", "jaxrlhf ppo --help"),
    ("see what would run", "jaxrlhf ppo --config my.yaml --print-config"),
)
# Failures of the machine that a person can put right: no bug, so no traceback.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def main(
    argv: Sequence[str] | None = None, *, recipes: "Mapping[str, Recipe] | None" = None
) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    xla.set_flags()
    recipes = RECIPES if recipes is None else recipes
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _command(argv, recipes)
    except UserError as error:
        return _failed(str(error), error.exit_code, argv, heading=error.heading)
    except KeyboardInterrupt:
        _errors().print("interrupted")
        return 130
    except BrokenPipeError:  # `jaxrlhf --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        return _failed(str(error), UserError.exit_code, argv)


def _command(argv: list[str], recipes: "Mapping[str, Recipe]") -> int:
    args = _parse(argv)
    if args.version:
        print(_version())
        return 0
    if not args.words:
        _print_help(recipes)
        return 0 if args.help else UserError.exit_code
    name, overrides = _chosen(args.words, recipes)
    if name not in recipes and args.help:
        _print_group_help(name, recipes)
        return 0
    if name not in recipes:
        raise UserError(_unknown_recipe(name, recipes))
    module = _import(name, recipes[name].module)
    if args.help:
        _print_recipe_help(name, recipes[name], module)
        _print_commands(name, recipes)
        return 0
    overrides = _named(overrides, recipes[name].positional)
    config: Config = module.CONFIG.load(args.config, _checked(overrides))
    if args.print_config:
        from jaxrlhf.config import dump

        print(dump(config), end="")
        return 0
    with _messages():
        module.run(config)
    return 0


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see jaxrlhf --help)")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="jaxrlhf", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--config", metavar="FILE")
    for flag in ("--print-config", "--debug", "--version"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    args, unknown = parser.parse_known_intermixed_args(argv)
    if not unknown:
        return args
    name = unknown[0].lstrip("-").partition("=")[0]
    options = ("config", "print-config", "debug", "version", "help")
    guess = nearest(name, options)
    hint = f"a field is set as {name}=VALUE" + (f"; did you mean --{guess}?" if guess else "")
    raise UserError(f"unknown option {unknown[0]}; {hint}")


def _named(overrides: list[str], positional: str | None) -> list[str]:
    """A first word without "=" is the value of the recipe's positional field."""
    if positional is None or not overrides or "=" in overrides[0]:
        return overrides
    return [f"{positional}={json.dumps(overrides[0])}", *overrides[1:]]


def _checked(overrides: list[str]) -> list[str]:
    for word in overrides:
        if "=" not in word and word.endswith((".yaml", ".yml")):
            raise UserError(f"{word}: a config file is given as --config {word}")
    return overrides


def _chosen(words: list[str], recipes: "Mapping[str, Recipe]") -> "tuple[str, list[str]]":
    """The name of a recipe, which may be two words, and the words after it."""
    first, *rest = words
    second = rest[0] if rest and _commands(first, recipes) else ""
    is_name = second and "=" not in second and not second.endswith((".yaml", ".yml"))
    takes_a_word = first in recipes and recipes[first].positional
    if f"{first} {second}" in recipes or (is_name and not takes_a_word):
        return f"{first} {second}", rest[1:]
    return first, rest


def _commands(name: str, recipes: "Mapping[str, Recipe]") -> "dict[str, Recipe]":
    """The recipes whose first word is `name` and that have a second."""
    return {key: recipe for key, recipe in recipes.items() if key.startswith(f"{name} ")}


def _unknown_recipe(name: str, recipes: "Mapping[str, Recipe]") -> str:
    if group := _commands(name.partition(" ")[0], recipes):
        recipes = group
    guess = nearest(name, recipes)
    hint = f"did you mean {guess!r}?" if guess else f"the recipes are {', '.join(recipes)}"
    return f"unknown recipe {name!r}; {hint}"


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "jaxrlhf"):
            raise
        raise UserError(
            f"jaxrlhf {name} needs the Python package {missing!r}, which is not installed here "
            "(pip install jaxrlhf installs all that is needed)"
        ) from error


# Printing.


def _failed(message: str, code: int, argv: list[str], *, heading: str = UserError.heading) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    console = _errors()
    style = "bold red" if heading == UserError.heading else "bold yellow"
    console.print(heading, style=style, end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    return code


def _errors() -> Console:
    return Console(stderr=True, highlight=False)


def _console() -> Console:
    console = Console(highlight=False)
    # Wide terminals make long lines that nobody can follow; a pipe has no width at all.
    console.width = min(console.width, HELP_WIDTH) if console.is_terminal else HELP_WIDTH
    return console


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Show what the package logs, above the progress bars, while a recipe runs."""
    from rich.logging import RichHandler

    from jaxrlhf.progress import console

    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    logger = logging.getLogger("jaxrlhf")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # some libraries hang a handler of their own on the root logger
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _version() -> str:
    parts = [f"jaxrlhf {jaxrlhf.__version__}"]
    for package in ("jax", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def _print_help(recipes: "Mapping[str, Recipe]") -> None:
    console = _console()
    _print_usage(console, "RECIPE")
    console.print("Reinforcement learning from feedback on language models, in JAX.\n")
    _print_rows(console, "Recipes", [(name, r.summary) for name, r in recipes.items()])
    options = [
        ("--config FILE", "YAML file of the recipe's fields; it may start from another (base: x)"),
        (
            "field=value",
            "override one field; nested as group.field=value, lists as stages.0.steps=9",
        ),
        ("--print-config", "print the resolved config and stop"),
        ("--debug", "show the traceback of an error"),
        ("--version", "print the versions in use"),
        ("--help", "this text; after a recipe, what it does and every field of its config"),
    ]
    _print_rows(console, "Options", options)
    _print_rows(console, "Examples", [(f"{what}:", line) for what, line in EXAMPLES])


def _print_recipe_help(name: str, recipe: "Recipe", module: ModuleType) -> None:
    from jaxrlhf.config_help import describe, group_title

    console = _console()
    rows = describe(module.CONFIG)
    _print_usage(console, f"{name} {(recipe.positional or '').upper()}".strip())
    console.print(inspect.cleandoc(module.__doc__ or recipe.summary), markup=False, end="\n\n")
    groups: dict[str, list[FieldDoc]] = {}
    for row in rows:
        groups.setdefault(row.path.rpartition(".")[0], []).append(row)
    for group, members in groups.items():
        title = group_title(module.CONFIG, group) if group else ""
        console.print(f"[bold]{escape(group or 'Fields')}[/]  {escape(title)}")
        _print_fields(console, members)
    example = getattr(module, "EXAMPLE", f"jaxrlhf {name} --config my.yaml {rows[0].path}=VALUE")
    console.print("[bold]Example[/]")
    console.print(f"  {example}", markup=False, soft_wrap=True)


def _print_group_help(name: str, recipes: "Mapping[str, Recipe]") -> None:
    """Of a first word that is no recipe by itself."""
    if not _commands(name, recipes):
        raise UserError(_unknown_recipe(name, recipes))
    _print_usage(_console(), f"{name} COMMAND")
    _print_commands(name, recipes)


def _print_commands(name: str, recipes: "Mapping[str, Recipe]") -> None:
    """The recipes of two words below `name`, if there are any."""
    if commands := _commands(name, recipes):
        _print_rows(_console(), "Commands", [(key, r.summary) for key, r in commands.items()])


def _print_usage(console: Console, recipe: str) -> None:
    usage = escape(f"jaxrlhf {recipe} [--config FILE] [field=value ...]")
    console.print(f"[bold]{usage}[/]\n")


def _print_fields(console: Console, rows: "list[FieldDoc]") -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="cyan", max_width=26)
    table.add_column(style="green", max_width=16, overflow="fold")
    table.add_column(ratio=1)
    for row in rows:
        default = "(required)" if row.required else row.default
        field = "  " + row.path.rpartition(".")[2]
        table.add_row(*map(escape, (field, row.type, default, row.description)))
    console.print(table)
    console.print()


def _print_rows(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    console.print(f"[bold]{title}[/]")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for left, right in rows:
        table.add_row(escape(f"  {left}"), escape(right))
    console.print(table)
    console.print()
