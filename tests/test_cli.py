"""The command line: help, exit codes, what is printed where. Recipes are fakes, jax stays out."""

import subprocess
import sys
import types
from typing import Literal, NamedTuple

import pytest
from pydantic import Field

from jaxrlhf import cli
from jaxrlhf.config import Config
from jaxrlhf.errors import CheckpointError, DataError, NonFiniteError
from jaxrlhf.recipes import RECIPES


class Trainer(Config):
    steps: int = Field(default=10, ge=1, description="updates")
    kind: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="linear",
        description="A description that is longer than its column, up to the very end.",
    )


class Toy(Config):
    data: str = Field(description="a [file] of rows")
    seed: int = Field(default=0, description="root of all randomness")
    trainer: Trainer = Field(default=Trainer(), description="how it is trained")
    output_dir: str = Field(default="runs/toy", description="where it is written")


class FakeRecipe(NamedTuple):
    summary: str
    module: str
    positional: str | None = None


RUNS: list[Toy] = []


@pytest.fixture
def recipes(monkeypatch):
    """A registry with one recipe whose `run` can be told to fail."""
    module = types.ModuleType("toy_recipe", "Train a toy.\n\nIt has [two] paragraphs.")
    module.CONFIG = Toy  # type: ignore[attr-defined]
    module.EXAMPLE = "jaxrlhf toy data=rows.jsonl"  # type: ignore[attr-defined]
    module.run = RUNS.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_recipe", module)
    monkeypatch.setenv("COLUMNS", "300")
    RUNS.clear()
    return {
        "toy": FakeRecipe("trains a toy [model]", "toy_recipe"),
        "bare": FakeRecipe("takes its data first", "toy_recipe", positional="data"),
        "needy": FakeRecipe("needs a package", "a_package_nobody_has.recipe"),
    }


@pytest.fixture
def run(recipes, capsys):
    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(argv, recipes=recipes)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_recipe_runs_with_its_config(run, tmp_path):
    (tmp_path / "toy.yaml").write_text("data: a.jsonl\nseed: 3\n")
    path = str(tmp_path / "toy.yaml")
    for argv in (
        ("toy", "--config", path, "trainer.steps=5"),
        ("toy", "trainer.steps=5", "--config", path),
        ("--config", path, "toy", "trainer.steps=5"),
    ):
        assert run(*argv) == (0, "", "")
    assert [Toy(data="a.jsonl", seed=3, trainer=Trainer(steps=5))] * 3 == RUNS


def test_a_first_bare_word_is_the_field_that_the_recipe_says(run):
    for word in ("rows.jsonl", "a: [b", "./x y", "null"):  # whatever YAML would make of it
        assert run("bare", word, "seed=2") == (0, "", "")
        assert RUNS.pop() == Toy(data=word, seed=2)
    assert run("bare", "seed=2", "data=x")[0] == 0
    assert RUNS.pop() == Toy(data="x", seed=2)
    assert "override 'b': must look like field=value" in run("bare", "a", "b")[2]
    assert "jaxrlhf bare DATA [--config FILE]" in run("bare", "--help")[1]


def test_help_lists_recipes_options_and_examples(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for text in ("toy", "trains a toy [model]", "--config FILE", "[field=value ...]", "Examples"):
        assert text in out
    assert run() == (2, out, "")  # nothing to do is a usage error, but the help is what is needed
    assert max(map(len, out.splitlines())) <= 100


def test_a_recipes_help_is_its_docstring_fields_and_example(run):
    for argv in (("toy", "--help"), ("--help", "toy"), ("toy", "-h", "not_even=checked")):
        code, out, _ = run(*argv)
        assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert "It has [two] paragraphs." in lines
    assert "  data        text  (required)  a [file] of rows" in lines
    assert "  seed        int   0           root of all randomness" in lines
    assert "trainer  how it is trained" in lines
    assert any(line.split() == ["steps", "int,", ">=", "1", "10", "updates"] for line in lines)
    assert "  jaxrlhf toy data=rows.jsonl" in lines
    assert "very end." in out  # wrapped, not cut
    assert max(map(len, lines)) <= 100
    # `output_dir` comes after the group in the class, but stands with the other plain fields.
    assert lines.index("trainer  how it is trained") > next(
        n for n, line in enumerate(lines) if line.startswith("  output_dir")
    )


def test_a_command_may_be_two_words(run, recipes):
    recipes["pet dog"] = FakeRecipe("walks [it]", "toy_recipe")
    recipes["pet cat"] = FakeRecipe("feeds it", "toy_recipe", positional="data")
    assert run("pet", "dog", "data=x", "seed=2") == (0, "", "")
    assert RUNS.pop() == Toy(data="x", seed=2)
    assert run("pet", "cat", "fish") == (0, "", "")
    assert RUNS.pop() == Toy(data="fish")
    code, out, _ = run("pet", "--help")
    assert code == 0
    assert "jaxrlhf pet COMMAND [--config FILE] [field=value ...]" in out
    assert [line.split() for line in out.splitlines() if line.startswith("  pet")] == [
        ["pet", "dog", "walks", "[it]"],
        ["pet", "cat", "feeds", "it"],
    ]
    assert "jaxrlhf pet dog [--config FILE]" in run("pet", "dog", "--help")[1]
    code, _, err = run("pet", "dgo", "data=x")
    assert (code, err) == (2, "error: unknown recipe 'pet dgo'; did you mean 'pet dog'?\n")
    for argv in (("pet",), ("pet", "data=x")):
        code, _, err = run(*argv)
        assert code == 2
        assert "unknown recipe 'pet'" in err and "pet dog" in err
    assert "unknown recipe 'pat'" in run("pat", "--help")[2]


def test_a_word_may_be_a_recipe_and_begin_others(run, recipes):
    recipes["toy car"] = FakeRecipe("drives it", "toy_recipe")
    assert run("toy", "data=x")[0] == 0 and run("toy", "car", "data=y")[0] == 0
    assert [toy.data for toy in RUNS] == ["x", "y"]
    out = run("toy", "--help")[1]
    assert "It has [two] paragraphs." in out and "drives it" in out
    assert "unknown recipe 'toy cra'; did you mean 'toy car'?" in run("toy", "cra", "data=x")[2]


def test_print_config_is_a_config_file(run, tmp_path):
    code, out, _ = run("toy", "data=no", "--print-config")
    assert code == 0
    assert RUNS == []
    (tmp_path / "again.yaml").write_text(out)
    assert Toy.load(tmp_path / "again.yaml") == Toy(data="no")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("toi",), "unknown recipe 'toi'; did you mean 'toy'?"),
        (("xyz",), "unknown recipe 'xyz'; the recipes are toy, bare, needy"),
        (("toy",), "config: data: a value is required"),
        (
            ("toy", "data=x", "sede=1"),
            "override 'sede=1': sede = 1: unknown field; did you mean 'seed'?",
        ),
        (("toy", "--config", "no/such.yaml"), "no/such.yaml: no such file"),
        (("toy", "run.yaml"), "run.yaml: a config file is given as --config run.yaml"),
        (("toy", "data"), "override 'data': must look like field=value"),
        (("toy", "--seed=3"), "unknown option --seed=3; a field is set as seed=VALUE"),
        (("toy", "--trainer.steps", "3"), "unknown option --trainer.steps; a field is set as"),
        (("toy", "--confg", "x"), "did you mean --config?"),
        (("toy", "--config"), "argument --config: expected one argument"),
        (("needy",), "needs the Python package 'a_package_nobody_has'"),
    ],
)
def test_mistakes_are_one_message_and_exit_2(run, argv, says):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("rows.jsonl:7: no [prompt]"), 2),
        (CheckpointError("another shape"), 2),
        (NonFiniteError("loss is nan"), 3),
        (OSError(28, "No space left on device"), 2),
        (PermissionError(13, "Permission denied", "/x"), 2),
    ],
)
def test_user_errors_inside_a_recipe(run, monkeypatch, error, code):
    def fail(config):
        raise error

    monkeypatch.setattr(sys.modules["toy_recipe"], "run", fail)
    got, out, err = run("toy", "data=x")
    assert (got, out) == (code, "")
    assert err == f"error: {error}\n"
    got, _, err = run("toy", "data=x", "--debug")
    assert got == code
    assert "Traceback" in err
    assert "in fail" in err


def test_bugs_keep_their_traceback(run, monkeypatch):
    def bug(config):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["toy_recipe"], "run", bug)
    with pytest.raises(ZeroDivisionError):
        run("toy", "data=x")


def test_a_recipe_that_imports_a_missing_module_of_ours_is_a_bug(recipes):
    recipes["broken"] = FakeRecipe("x", "jaxrlhf.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        cli.main(["broken"], recipes=recipes)


def test_interruption_exits_130(run, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["toy_recipe"], "run", interrupt)
    assert run("toy", "data=x") == (130, "", "interrupted\n")


def test_messages_are_shown_while_a_recipe_runs_and_not_after(run, monkeypatch):
    import logging

    logger = logging.getLogger("jaxrlhf.something")
    before = list(logging.getLogger("jaxrlhf").handlers)

    def talk(config):
        logger.info("a [line] for the user")

    monkeypatch.setattr(sys.modules["toy_recipe"], "run", talk)
    assert run("toy", "data=x")[0] == 0
    assert logging.getLogger("jaxrlhf").handlers == before
    assert logging.getLogger("jaxrlhf").propagate


def test_the_real_registry_is_listed():
    assert RECIPES
    for name, recipe in RECIPES.items():
        assert recipe.module.startswith("jaxrlhf.recipes."), name
        assert recipe.summary, name


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )


def test_help_and_version_do_not_import_jax():
    code = (
        "import sys; from jaxrlhf.cli import main; main(['--help']); main(['--version']);"
        "print('LOADED', [m for m in ('jax', 'numpy', 'flax', 'datasets') if m in sys.modules])"
    )
    result = python(code)
    assert result.stdout.splitlines()[-1] == "LOADED []", result.stderr
    assert "jaxrlhf 0." in result.stdout


def test_python_m_jaxrlhf_returns_the_exit_code():
    command = [sys.executable, "-m", "jaxrlhf", "no-such-recipe"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown recipe 'no-such-recipe'")
