"""`import jaxrlhf.losses` is light, imports nothing it should not, and never compiles anything."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrlhf import losses

FILES = sorted(Path(losses.__file__).parent.glob("*.py"))
MODULES = [m.name for m in pkgutil.iter_modules(losses.__path__) if not m.name.startswith("_")]

PROGRAM = """
import sys, jax, chex
def third_party():
    top = {name.partition(".")[0] for name in sys.modules}
    return {n for n in top if n not in sys.stdlib_module_names and not n.startswith("_")}
before = third_party()
import jaxrlhf.losses
print(*sorted(third_party() - before))
"""


def test_importing_the_losses_loads_nothing_beyond_jax_and_chex() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(losses.__file__).parents[2],
    )
    assert run.stdout.split() == ["jaxrlhf"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_only_jax_chex_and_the_standard_library(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "." for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    for name in names:
        top = name.partition(".")[0]
        assert top in {"jax", "chex", *sys.stdlib_module_names} or name.startswith("jaxrlhf.losses")
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not attributes & {"jit", "config", "environ"}  # the caller compiles and configures


def test_the_package_lists_its_modules() -> None:
    assert sorted(losses.__all__) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_a_doctest_that_holds(name: str) -> None:
    module = importlib.import_module(f"jaxrlhf.losses.{name}")
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not function_name.startswith("_"):
            assert ">>>" in (function.__doc__ or ""), f"{name}.{function_name} has no example"
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0
