"""Who may import whom, and what stands only in one place: the architecture, read from the source.

Each rule is a function from modules to a list of violations; each is also shown a small made-up
package that breaks it, because a rule that never fails proves nothing.
"""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxrlhf

ROOT = Path(jaxrlhf.__file__).parent

# Longest match wins. These may import the listed parts of the package and no others.
ONLY = {
    "errors": (),
    "packing": ("errors",),
    "reading": ("packing", "losses", "models", "errors"),
    "xla": (),
    "losses": ("losses",),
    "models": ("models", "errors"),
    "sampling": ("models", "errors"),
    "continuous": ("models", "sampling"),
    "inference": ("continuous", "reading", "packing", "losses", "models", "sampling", "errors"),
    "rewards": ("inference", "reading", "packing", "losses", "models", "errors"),
    "constitutional": (
        *("constitutional", "sampling", "inference", "data", "models", "sharding", "config"),
        "errors",
    ),
    "algorithms": (
        *("algorithms", "losses", "sampling", "inference", "models", "rewards", "monitoring"),
        *("packing", "reading", "errors"),
    ),
    "sharding": ("models", "errors"),
    "hf": ("hf", "models", "sharding", "errors"),
    "optim": ("config", "errors"),
    "guards": ("guards", "evals.statistics", "config", "errors"),
    "loop": ("sharding", "monitoring", "algorithms.base", "errors"),
    "cli": ("recipes", "config", "config_help", "progress", "errors", "xla"),
    "__main__": ("cli",),
    "recipes": ("",),  # the composition root knows everything ...
}
# ... and nobody else knows the four at the top.
TOP = ("algorithms", "loop", "recipes", "cli")

LOSSES_EXTERNAL = {"jax", "chex"} | sys.stdlib_module_names
SERVICES = ("grain", "datasets", "transformers")  # often missing from GPU images
LIGHT = (
    *("losses", "models", "sampling", "inference", "algorithms", "loop", "rewards", "sharding"),
    *("optim", "hf"),
)
NO_JAX = (
    *("data", "sandbox", "labelling", "config", "config_file", "config_help", "errors", "cli"),
    *("progress", "guards"),
)
CONFIG_LIBRARIES = (
    *("config", "config_file", "config_help", "optim", "guards", "constitutional", "recipes"),
)
MESH_FREE = (
    *("losses", "models", "sampling", "inference", "algorithms", "loop", "rewards", "optim"),
    *("evals", "hf"),
)
# `hf.weights` writes layers into a stacked leaf in place while it loads; nothing is computed there.
# The sign test asks for one gradient before a run begins.
JIT_SITES = {"loop": 4, "inference": 12, "hf.weights": 1, "recipes.guarded": 1}

Modules = dict[str, ast.Module]


@functools.cache
def package() -> Modules:
    """`losses.masked` -> its tree, for every file there is."""
    modules = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def made_up(**sources: str) -> Modules:
    return {name.replace("__", "."): ast.parse(text) for name, text in sources.items()}


def is_in(name: str, part: str) -> bool:
    return part == "" or name == part or name.startswith(f"{part}.")


def imports(name: str, modules: Modules) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it: `jaxrlhf.losses.masked`, `jax.numpy`."""
    for node in ast.walk(modules[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}.py:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("jaxrlhf.") in modules else str(node.module)


def internal(name: str, modules: Modules) -> list[str]:
    found = [full for full in imports(name, modules) if full.startswith("jaxrlhf.")]
    return [full.removeprefix("jaxrlhf.") for full in found]


def external(name: str, modules: Modules) -> list[str]:
    roots = {full.partition(".")[0] for full in imports(name, modules)}
    return sorted(roots - {"jaxrlhf"})


# The rules.


def wrong_directions(modules: Modules) -> list[str]:
    wrong = []
    for name in modules:
        only = next((parts for part, parts in ONLY.items() if is_in(name, part)), None)
        for target in internal(name, modules):
            if only is not None:
                allowed = any(is_in(target, part) for part in only)
            else:
                allowed = not any(is_in(target, part) for part in TOP)
            if not allowed:
                wrong.append(f"{name} imports {target}")
    return wrong


def wrong_libraries(modules: Modules) -> list[str]:
    wrong = []
    for name in modules:
        for library in external(name, modules):
            inside = [part for part in LIGHT if is_in(name, part)]
            bad = (
                (is_in(name, "losses") and library not in LOSSES_EXTERNAL)
                or (library == "flax" and not is_in(name, "models"))
                or (library in SERVICES and inside)
                or (library in ("jax", "flax", "optax") and any(is_in(name, p) for p in NO_JAX))
                or (
                    library in ("pydantic", "yaml")
                    and not any(is_in(name, part) for part in CONFIG_LIBRARIES)
                )
            )
            if bad:
                wrong.append(f"{name} imports {library}")
    return wrong


def mesh_words(modules: Modules) -> list[str]:
    """Mesh axes and layouts outside sharding.py; "data" means other things in data/ and others."""
    wrong = []
    for name, tree in modules.items():
        if is_in(name, "sharding") or is_in(name, "recipes"):
            continue
        words = {"tensor", "data"} if any(is_in(name, part) for part in MESH_FREE) else {"tensor"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in words:
                wrong.append(f"{name}:{node.lineno} says {node.value!r}")
            elif isinstance(node, ast.Name | ast.Attribute | ast.alias):
                layout = _last_name(node) in ("PartitionSpec", "NamedSharding")
                if layout or ast.unparse(node) == "jax.make_mesh":
                    wrong.append(f"{name}:{node.lineno} says {ast.unparse(node)}")
    return wrong


def jit_sites(modules: Modules) -> dict[str, int]:
    sites: dict[str, int] = {}
    for name, tree in modules.items():
        nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute | ast.alias))
        count = sum(_last_name(node) in ("jit", "pjit", "pmap") for node in nodes)
        if count:
            sites[name] = count
    return sites


def settings_at_import(modules: Modules) -> list[str]:
    """`os.environ[...] = x`, `os.environ.update(...)`, `jax.config.update(...)` at module level."""
    wrong = []
    for name, tree in modules.items():
        for node in _outside_functions(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            written = [ast.unparse(t) for t in targets if isinstance(t, ast.Subscript)]
            called = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            changes = ("environ.update", "environ.setdefault", "putenv", "config.update")
            if any("environ[" in text for text in written) or any(
                text.endswith(changes) for text in called
            ):
                wrong.append(f"{name}:{node.lineno} changes a setting at import")
    return wrong


def _last_name(node: ast.Name | ast.Attribute | ast.alias) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else node.name.rpartition(".")[2]


def _outside_functions(node: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.stmt | ast.expr):
            yield child
        yield from _outside_functions(child)


# The package keeps them ...


def test_the_rules_speak_of_files_that_exist():
    parts = {*ONLY, *TOP, *LIGHT, *NO_JAX, *CONFIG_LIBRARIES, *MESH_FREE, *JIT_SITES}
    assert sorted(parts - set(package())) == []


def test_imports_go_one_way():
    assert wrong_directions(package()) == []


def test_libraries_stay_in_their_layer():
    assert wrong_libraries(package()) == []


def test_mesh_axes_are_named_only_in_sharding():
    assert mesh_words(package()) == []


def test_jit_is_called_only_in_loop_and_inference():
    # A new site is a new compilation that somebody waits for: count it here on purpose.
    assert jit_sites(package()) == JIT_SITES


def test_importing_changes_no_setting():
    assert settings_at_import(package()) == []


# ... and made-up packages do not.


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({"losses__a": "from jaxrlhf.models import x"}, "losses.a imports models"),
        ({"models": "", "errors": "import jaxrlhf.models"}, "errors imports models"),
        (
            {"models__a": "from jaxrlhf import algorithms", "algorithms": ""},
            "models.a imports algor",
        ),
        ({"algorithms__a": "def f():\n  import jaxrlhf.loop"}, "algorithms.a imports loop"),
        ({"algorithms__a": "from jaxrlhf.config import Config"}, "algorithms.a imports config"),
        ({"loop": "from jaxrlhf.algorithms.ppo import x"}, "loop imports algorithms.ppo"),
        ({"loop": "from jaxrlhf.checkpoint import x"}, "loop imports checkpoint"),
        ({"evals__a": "from jaxrlhf.algorithms import x"}, "evals.a imports algorithms"),
        ({"data__a": "from jaxrlhf.recipes import x"}, "data.a imports recipes"),
        ({"report": "if 1:\n  from jaxrlhf.loop import x"}, "report imports loop"),
    ],
)
def test_wrong_directions_are_seen(sources, says):
    assert [text[: len(says)] for text in wrong_directions(made_up(**sources))] == [says]


def test_right_directions_are_not():
    right = made_up(
        algorithms__ppo="from jaxrlhf.losses import masked\nfrom jaxrlhf.algorithms import base",
        algorithms__base="import jax",
        loop="from jaxrlhf.algorithms.base import Algorithm\nfrom jaxrlhf import sharding",
        sharding="from jaxrlhf.models.transformer import PARAM_AXES",
        recipes__a="from jaxrlhf import loop, cli, algorithms",
        guards="from jaxrlhf.errors import UserError",
    )
    assert wrong_directions(right) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("losses__a", "import numpy"),
        ("inference", "from flax import linen"),
        ("models__a", "def f():\n  from transformers import AutoTokenizer"),
        ("loop", "import grain.python"),
        ("data__a", "import jax.numpy as jnp"),
        ("algorithms__a", "import pydantic"),
    ],
)
def test_wrong_libraries_are_seen(name, source):
    assert len(wrong_libraries(made_up(**{name: source}))) == 1


@pytest.mark.parametrize(
    "source",
    ["x = 'data'", "f(axis='tensor')", "from jax.sharding import PartitionSpec", "jax.make_mesh"],
)
def test_mesh_words_are_seen(source):
    assert len(mesh_words(made_up(inference=source))) == 1
    assert mesh_words(made_up(sharding=source)) == []


@pytest.mark.parametrize(
    "source", ["import jax\njax.jit(f)", "from jax import jit", "@partial(jax.jit)\ndef f(): ..."]
)
def test_jit_sites_are_counted(source):
    assert jit_sites(made_up(models__a=source, metrics="'jit'")) == {"models.a": 1}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("os.environ['A'] = '1'", 1),
        ("if x:\n  os.environ.setdefault('A', '1')", 1),
        ("class A:\n  jax.config.update('a', 1)", 1),
        ("def f():\n  os.environ['A'] = '1'\n  jax.config.update('a', 1)", 0),
        ("x = os.environ['A']", 0),
    ],
)
def test_settings_at_import_are_seen(source, count):
    assert len(settings_at_import(made_up(a=source))) == count


# What GPU images lack must not be needed by what runs on them.


IMPORT_WITHOUT = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
failed = {{}}
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def failed_imports(names: list[str], blocked: tuple[str, ...]) -> dict[str, str]:
    code = IMPORT_WITHOUT.format(blocked=blocked, names=names)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_light_parts_import_without_data_libraries():
    names = [f"jaxrlhf.{name}" for name in LIGHT]
    names += [
        f"jaxrlhf.{name}"
        for name in package()
        if name.startswith(("algorithms.", "models.", "hf."))
    ]
    assert failed_imports(names, SERVICES) == {}


def test_the_blocker_blocks():
    assert failed_imports(["json", "csv"], ("csv",)) == {"csv": "blocked: csv"}
