"""config.py, config_file.py and config_help.py: what is read, what is refused, what is said."""

import os
from pathlib import Path
from typing import Literal

import pydantic
import pytest
import yaml
from pydantic import Field

from jaxrlhf import config_file
from jaxrlhf.config import Config, ConfigError, differences, dump, one_of, save_resolved
from jaxrlhf.config_help import describe, group_title
from jaxrlhf.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    UserError,
    nearest,
)


class Optimizer(Config):
    learning_rate: float = Field(default=1e-3, gt=0, description="peak rate")
    lr_scheduler_type: Literal["linear", "cosine"] = Field(
        default="linear", description="its shape"
    )


class Stage(Config):
    steps: int = Field(default=10, ge=1, description="updates")
    optimizer: Optimizer = Field(default=Optimizer(), description="how it is trained")


class Run(Config):
    seed: int = Field(default=0, description="root of all randomness")
    name: str = Field(default="run", description="shown in the report")
    sft: Stage = Field(
        default=Stage(steps=7, optimizer=Optimizer(learning_rate=0.5)), description="fine-tuning"
    )
    ppo: Stage | None = Field(default=None, description="reinforcement learning")
    rounds: tuple[Stage, ...] = Field(
        default=(Stage(steps=3), Stage(steps=4)), description="in order"
    )
    named: dict[str, Stage] = Field(default={"first": Stage(steps=5)}, description="by name")
    weights: dict[str, float] = Field(
        default={"good": 1.0}, description="of the score's components"
    )
    clip: float | Literal["auto"] = Field(default="auto", description="reward clipping")
    quiet: bool = Field(default=False, description="print less")
    output_dir: Path = Field(default=Path("runs/x"), description="where the run is written")


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def error(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Run.load(path, overrides)
    return str(caught.value)


# Reading.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # YAML 1.1 reads these two as text
        ("1E-5", 1e-5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1_000_000", 1_000_000),
        ("010", 10),  # 8 in YAML 1.1
        ("0x1F", 31),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("no", "no"),  # false in YAML 1.1
        ("2024-01-31", "2024-01-31"),  # a date in YAML 1.1
        ("true", True),
        ("null", None),
        ("", None),
        ("'1e-5'", "1e-5"),
        ("[1, 1e-3, no]", [1, 1e-3, "no"]),
        ("{a: {b: ~}}", {"a": {"b": None}}),
        ("1e", "1e"),
        ("-", [None]),
    ],
)
def test_values_are_read_as_people_mean_them(text, value):
    read = config_file.parse_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_gives_the_defaults(tmp_path, text):
    assert Run.load(write(tmp_path, text)) == Run() == Run.load()


def test_file_then_overrides_in_order(tmp_path):
    path = write(tmp_path, "seed: 3\nname: file\nsft:\n  steps: 5\n")
    run = Run.load(path, ["name=first", "name=second", "sft.optimizer.learning_rate=1E-4"])
    assert (run.seed, run.name, run.sft.steps) == (3, "second", 5)
    assert run.sft.optimizer.learning_rate == 1e-4


def test_a_group_given_in_part_keeps_its_parents_default(tmp_path):
    # Stage alone defaults to steps 10 and rate 1e-3, but Run.sft to steps 7 and rate .5.
    from_file = Run.load(write(tmp_path, "sft: {optimizer: {lr_scheduler_type: cosine}}"))
    from_override = Run.load(None, ["sft.optimizer.lr_scheduler_type=cosine"])
    assert from_file == from_override
    assert from_file.sft.steps == 7
    assert from_file.sft.optimizer == Optimizer(learning_rate=0.5, lr_scheduler_type="cosine")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Why: because", "Why: because"),  # a mapping, if it were YAML
        ("[a", "[a"),  # no YAML at all
        ("2", "2"),
        ("true", "true"),
        ("", "run"),  # null, which this field does not take
        ("plain", "plain"),
        ("'2: quoted'", "2: quoted"),
        ('"a\\nb"', "a\nb"),
    ],
)
def test_an_override_of_text_is_the_text_as_it_stands(value, name):
    if value:
        assert Run.load(None, [f"name={value}"]).name == name
    else:
        assert "must be a valid string" in error(None, "name=")
    assert "seed" in error(None, f"seed={value or 'x'}x")  # of other fields it is YAML as ever


def test_overrides_reach_list_items_mappings_and_absent_groups():
    run = Run.load(None, ["rounds.1.steps=9", "weights.bad=-1", "ppo.steps=2", "clip=0.5"])
    assert [stage.steps for stage in run.rounds] == [3, 9]
    assert run.weights == {"good": 1.0, "bad": -1.0}
    assert run.ppo == Stage(steps=2)
    assert run.clip == 0.5
    assert Run.load(None, ["name=a=b"]).name == "a=b"
    assert Run.load(None, ["rounds=[{steps: 1}]", "weights={}"]).rounds == (Stage(steps=1),)


def test_base_is_relative_merged_and_chained(tmp_path):
    write(tmp_path, "seed: 1\nweights: {a: 1, b: 2}\nsft: {steps: 5}\n", "root.yaml")
    write(tmp_path, "base: root.yaml\nweights: {b: 3}\n", "middle.yaml")
    path = write(
        tmp_path, "base: ../middle.yaml\nsft: {optimizer: {learning_rate: 2}}\n", "x/a.yaml"
    )
    run = Run.load(path)
    assert run.seed == 1
    assert run.weights == {"a": 1, "b": 3}
    assert (run.sft.steps, run.sft.optimizer.learning_rate) == (5, 2)


def test_nothing_is_expanded_from_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    assert Run.load(None, ["name=$HOME/${HOME}/~"]).name == "$HOME/${HOME}/~"


# Refusing.


def test_unknown_fields_name_file_line_and_nearest(tmp_path):
    path = write(tmp_path, "seed: 1\nsft:\n  optimizer:\n    learning_rte: 1e-5\n")
    message = error(path)
    assert message == (
        f"{path}:4: sft.optimizer.learning_rte = 1.0e-05: unknown field; "
        "did you mean 'learning_rate'?"
    )
    assert "override 'sftt.steps=1': sftt = {steps: 1}: unknown field; did you mean 'sft'?" in (
        error(None, "sftt.steps=1")
    )
    # No such name here, but further down.
    assert "'sft.optimizer.learning_rate'" in error(None, "learning_rate=1")
    # Inside the items of a list, and of a mapping whatever they are called.
    for field in ("rounds.1", "named.first", "named.7"):
        assert f"{field}.stps = 1: unknown field; did you mean 'steps'?" in error(
            None, f"{field}.stps=1"
        )
    assert "the fields here are steps, optimizer" in error(None, "sft.xxx=1")


def test_an_error_in_a_base_names_the_base_file(tmp_path):
    base = write(tmp_path, "\nsede: 1\n", "root.yaml")
    assert error(write(tmp_path, "base: root.yaml\n")).startswith(f"{base}:2: sede = 1: ")


def test_all_mistakes_are_listed_together(tmp_path):
    path = write(tmp_path, "seed: 1.5\nname: 3\nsft:\n  steps: 0\nclip: [1]\n")
    lines = error(path, "sft.optimizer.lr_scheduler_type=consine", "quiet=maybe").splitlines()
    assert lines[0] == "6 mistakes in the configuration:"
    expected = [
        f"{path}:1: seed = 1.5: must be a valid integer",
        f"{path}:2: name = 3: must be a valid string",
        f"{path}:4: sft.steps = 0: must be greater than or equal to 1",
        f"{path}:5: clip = [1]: must be a valid number or must be 'auto'",
        "override 'sft.optimizer.lr_scheduler_type=consine': "
        "sft.optimizer.lr_scheduler_type = consine: must be 'linear' or 'cosine'; "
        "did you mean 'cosine'?",
        "override 'quiet=maybe': quiet = maybe: must be a valid boolean",
    ]
    for text in expected:
        assert sum(line.strip().startswith(text) for line in lines) == 1, text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2\n", ":2: 'seed' stands twice, first at {path}:1"),
        ("sft:\n  steps: 1\n  steps: 2\n", ":3: 'steps' stands twice"),
        ("seed: [1\n", ":2: not valid YAML: "),
        ("a: b: c\n", ":1: not valid YAML: "),
        ("\tseed: 1\n", ":1: not valid YAML: "),
        ("- 1\n- 2\n", ": must hold `key: value` lines, but holds [1, 2]"),
        ("just text\n", ": must hold `key: value` lines"),
        ("seed: 1\n---\nseed: 2\n", ":2: not valid YAML: "),
        ("1: 2\n", ":1: the key 1 must be text"),
        ("null: 2\n", ":1: the key null must be text"),
        ("seed: !!python/name:os.system ''\n", ":1: the tag "),
        ("seed: !!int abc\n", ":1: 'abc' is not a valid "),
        ("name: &a [*a]\n", ":1: a YAML anchor that contains itself"),
        ("seed: true\n", ":1: seed = true: must be a number, not true or false"),
        ("seed: .nan\n", ":1: seed = .nan: must be a finite number"),
        ("weights: {good: .inf}\n", ":1: weights.good = .inf: must be a finite number"),
        ("sft: 3\n", ":1: sft = 3: must be a valid dictionary or instance of Stage"),
        ("base: [a]\n", ":1: base = ['a']: must be the path of another YAML file"),
        ("seed: 1\nbase: nowhere.yaml\n", ":2: base = 'nowhere.yaml': {dir}/nowhere.yaml: no such"),
        ("base: ./run.yaml\n", ":1: base goes in a circle: {path} -> {path}"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path, text, says):
    path = write(tmp_path, text)
    assert error(path).startswith(path + says.format(path=path, dir=tmp_path))


def test_a_circle_of_two_files_is_refused(tmp_path):
    write(tmp_path, "base: run.yaml\n", "other.yaml")
    assert "base goes in a circle: " in error(write(tmp_path, "base: other.yaml\n"))


def test_files_that_cannot_be_read(tmp_path):
    write(tmp_path, "seed: 1\n", "small.yaml")
    assert error(f"{tmp_path}/smal.yaml") == (
        f"{tmp_path}/smal.yaml: no such file; did you mean {tmp_path}/small.yaml?"
    )
    assert "and no folder" in error(f"{tmp_path}/nowhere/small.yaml")
    assert "cannot be read" in error(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert error(f"{tmp_path}/latin.yaml") == f"{tmp_path}/latin.yaml: not UTF-8 text (byte 9)"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "must look like field=value"),
        ("=1", "must look like field=value"),
        ("sft..steps=1", "must look like field=value"),
        ("seed=[1", "its value:1: not valid YAML"),
        ("rounds.2.steps=1", "rounds has items 0 to 1"),
        ("rounds.x.steps=1", "rounds has items 0 to 1"),
        ("seed.x=1", "seed = 0 has no fields of its own"),
    ],
)
def test_bad_overrides_name_themselves(override, says):
    message = error(None, "seed=0", override)
    assert message.startswith(f"override {override!r}: {says}")


def test_a_missing_value_is_asked_for(tmp_path):
    class Needs(Config):
        inner: Stage | None = Field(default=None, description="x")
        path: str = Field(description="x")

    path = write(tmp_path, "inner: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: path: a value is required$"):
        Needs.load(path)
    with pytest.raises(ConfigError, match=r"^config: path: a value is required$"):
        Needs.load()


def test_checks_across_fields_name_the_file(tmp_path):
    class Pair(Config):
        low: int = Field(default=0, description="x")
        high: int = Field(default=1, description="x")

        @pydantic.model_validator(mode="after")
        def _ordered(self):
            if self.low >= self.high:
                raise ValueError("low must be below high")
            return self

    path = write(tmp_path, "low: 3\n")
    with pytest.raises(ConfigError) as caught:
        Pair.load(path)
    assert str(caught.value) == f"{path}: low must be below high"


def test_configs_are_frozen_and_their_defaults_checked():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Run().seed = 1  # type: ignore[misc]

    class Wrong(Config):
        steps: int = Field(default=0, ge=1, description="x")

    with pytest.raises(ConfigError, match="steps = 0: must be greater"):
        Wrong.load()


def test_base_cannot_be_a_field():
    class Clash(Config):
        base: str = Field(default="x", description="x")

    with pytest.raises(TypeError, match="the name is taken"):
        Clash.load()


# Writing.


TRICKY = ["no", "1e-5", "1E3", "on", "~", "", "010", "0x10", "1:30", "2024-01-31", "a: b", "é", "-"]


@pytest.mark.parametrize("name", TRICKY)
def test_dump_is_read_back_equal(tmp_path, name):
    run = Run(name=name, ppo=Stage(), clip=1e-7, sft=Stage(optimizer=Optimizer(learning_rate=3e-6)))
    assert Run.load(write(tmp_path, dump(run))) == run
    assert yaml.safe_load(dump(run))["name"] == name  # other people's readers agree
    assert Run.load(None, [f"name={config_file.to_line(name)}"]).name == name


def test_save_resolved_is_atomic(tmp_path, monkeypatch):
    path = save_resolved(Run(seed=1), tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "config.yaml"
    assert Run.load(path) == Run(seed=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    # Full at the last moment before the file is in place: the old one must still be whole.
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_resolved(Run(seed=2), path.parent)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_resolved(Run(seed=2), path.parent)
    assert Run.load(path) == Run(seed=1)
    assert os.listdir(path.parent) == ["config.yaml"]


def test_differences_name_the_fields():
    a = Run(seed=1, ppo=Stage(steps=2))
    assert differences(a, a) == []
    assert differences(a, Run(seed=2, ppo=Stage(steps=3))) == [("seed", 1, 2), ("ppo.steps", 2, 3)]
    assert differences(Run(), Run(output_dir=Path("y"))) == [("output_dir", "runs/x", "y")]
    # An older run's file may hold a field that is gone, or lack one.
    old = yaml.safe_load(dump(a)) | {"gone": 1}
    del old["quiet"]
    assert differences(old, a) == [("gone", 1, ...), ("quiet", ..., False)]
    group = differences(Run(), a)
    assert ("ppo", None, ...) in group
    assert ("ppo.steps", ..., 2) in group


# Describing.


def test_describe_lists_every_field_once():
    rows = {row.path: row for row in describe(Run)}
    assert len(rows) == len(describe(Run))
    assert rows["seed"] == ("seed", "int", "0", "root of all randomness", False)
    # The default is the parent's, not the class's.
    assert rows["sft.optimizer.learning_rate"][1:4] == ("float, > 0", "0.5", "peak rate")
    assert rows["sft.optimizer.lr_scheduler_type"].type == "linear | cosine"
    assert rows["ppo"][1:3] == ("group | null", "null")
    assert rows["ppo.steps"][1:3] == ("int, >= 1", "10")
    assert rows["rounds"].type == "list of group"
    assert rows["rounds.N.steps"].type == "int, >= 1"
    assert rows["named"].type == "mapping of text to group"
    assert rows["named.N.optimizer.learning_rate"].type == "float, > 0"
    assert rows["weights"][1:3] == ("mapping of text to float", "{good: 1.0}")
    assert rows["clip"].type == "float | auto"
    assert rows["quiet"][1:3] == ("true or false", "false")
    assert rows["output_dir"][1:3] == ("path", "runs/x")
    assert group_title(Run, "sft.optimizer") == "how it is trained"
    assert group_title(Run, "rounds.N") == "in order"
    assert group_title(Run, "named.N") == "by name"


def test_describe_marks_required_fields():
    class Needs(Config):
        path: str = Field(min_length=1, description="x")
        stage: Stage = Field(description="x")

    rows = describe(Needs)
    assert rows[0] == ("path", "text, at least 1 long", "", "x", True)
    assert rows[1].path == "stage.steps"


def test_describe_refuses_fields_without_a_description():
    class Inner(Config):
        bare: int = 1

    class Outer(Config):
        told: int = Field(default=1, description="x")
        inner: Inner = Field(default=Inner())
        many: list[Inner] = Field(default=[], description="x")

    with pytest.raises(TypeError, match=r"Outer: no .* for inner, inner\.bare, many\.bare$"):
        describe(Outer)


# Errors.


def test_one_of_and_nearest():
    assert one_of("kl", "k1", ["k1", "k2"]) == "k1"
    with pytest.raises(ConfigError) as caught:
        one_of("estimator", "K11", ["k1", "k2"])
    assert str(caught.value) == "estimator = 'K11': must be one of k1, k2; did you mean 'k1'?"
    assert nearest("LINEAR", ["linear"]) == "linear"
    assert nearest("zzz", ["linear"]) is None


def test_exit_codes():
    assert {cls.exit_code for cls in (UserError, ConfigError, DataError, CheckpointError)} == {2}
    assert NonFiniteError.exit_code == 3
    assert issubclass(NonFiniteError, UserError)
