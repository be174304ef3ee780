"""LoRA through the recipes: what trains, what is written, what loads, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
import safetensors.numpy

from jaxrlhf import checkpoint, sharding
from jaxrlhf.recipes import saved

MESH = sharding.make_mesh(1, 1)
COMMON = ("batch_size=8", "max_steps=4", "save_steps=2", "tensorboard=false", "lora.rank=2")
LEARN = ("optimizer.learning_rate=0.05",)
COMMANDS = {
    "sft": (
        *("sft", "output_dir=tuned", "model_path=run/pretrain/model", "max_length=40"),
        *("data.train=[run/data/demonstrations.jsonl]", *COMMON, *LEARN),
    ),
    "reward": (
        *("reward", "output_dir=judge", "model_path=run/sft/model", "max_length=40"),
        *("data.train=[run/label/preferences.jsonl]", *COMMON, *LEARN),
    ),
    "ppo": (
        *("ppo", "output_dir=better", "policy=run/sft/model", "reward_model=judge/adapter"),
        *("prompts.files=[run/data/prompts.jsonl]", "prompts.max_length=6"),
        *("eval_prompts.files=[run/data/test_prompts.jsonl]", "sampling.response_length=6"),
        *("optimizer.learning_rate=0.05", *COMMON),
    ),
}
FOLDERS = {"sft": "tuned", "reward": "judge", "ppo": "better"}
BASES = {"sft": "run/pretrain/model", "reward": "run/sft/model", "ppo": "run/sft/model"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The tiny pipeline, and its stages once more with adapters."""
    folder = micro.copy(tmp_path_factory.mktemp("lora"))
    for argv in COMMANDS.values():
        assert micro.command(folder, *argv) == 0, argv
    return folder


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def differing(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> set[str]:
    return {name for name in a if name not in b or not np.array_equal(a[name], b[name])}


@pytest.mark.parametrize("recipe", FOLDERS)
def test_projections_are_all_that_changed(home, recipe):
    """Seven in the one layer, and a reward model's head; embeddings and norms are the base's."""
    base, trained = arrays(home / BASES[recipe]), arrays(home / FOLDERS[recipe] / "model")
    changed = differing(trained, base)
    projections = {name for name in trained if "_proj." in name}
    assert len(projections) == 7
    assert changed == projections | ({"score.weight"} if recipe == "reward" else set())


@pytest.mark.parametrize("recipe", FOLDERS)
def test_checkpoints_hold_adapters_and_no_weights(home, recipe):
    steps = checkpoint.finished_steps(home / FOLDERS[recipe] / "checkpoints")
    names = checkpoint.stored_names(home / FOLDERS[recipe] / "checkpoints", steps[-1])
    params = [name for name in names if name.startswith("params/")]
    heads = [name for name in params if "/head/" in name]
    assert len(heads) == {"sft": 0, "reward": 2, "ppo": 2}[recipe]
    assert all("lora_" in name for name in params if name not in heads) and len(params) > 10


@pytest.mark.parametrize("recipe", FOLDERS)
def test_the_adapter_folder_is_the_model(home, recipe):
    folder = home / FOLDERS[recipe]
    load = saved.load_scalar if recipe == "reward" else saved.load_lm
    merged, apart = (load(str(folder / name), MESH) for name in ("model", "adapter"))
    assert merged[0] is apart[0] and merged.family == apart.family
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        merged.params,
        apart.params,
    )
    assert merged.tokenizer.get_vocab() == apart.tokenizer.get_vocab()


@pytest.mark.parametrize("recipe", FOLDERS)
def test_a_checkpoint_is_exported_with_its_base(home, recipe, tmp_path):
    folder = FOLDERS[recipe]
    assert micro.command(home, "export", folder, "step=4", f"output={tmp_path}/out") == 0
    found, finished = arrays(tmp_path / "out"), arrays(home / folder / "model")
    # a reward model's scores are normalised after its last checkpoint
    assert differing(found, finished) == ({"score.weight"} if recipe == "reward" else set())
    assert micro.command(home, "export", f"{folder}/adapter", f"output={tmp_path}/more") == 0
    assert not differing(arrays(tmp_path / "more"), finished)


def test_commands_take_an_adapter_for_a_model(home, capfd):
    assert micro.command(home, "inspect", "better/adapter", "recipe=ppo") == 0
    assert "holds language model" in " ".join(capfd.readouterr().out.split())
    ask = ("prompt=the cook", "sampling.response_length=9", "sampling.min_new_tokens=9")
    answers = []
    for name in ("better/adapter", "better/model"):
        assert micro.command(home, "generate", name, *ask) == 0
        answers.append(capfd.readouterr().out)
    assert answers[0] == answers[1] and len(answers[0].split()) > 3


@pytest.mark.parametrize("recipe", ["reward", "ppo"])
def test_a_killed_run_goes_on_bit_for_bit(home, recipe, tmp_path):
    """A run that stopped after its checkpoint at 2 of 4 updates."""
    folder = Path(shutil.copytree(home, tmp_path / "copy"))
    stage = folder / FOLDERS[recipe]
    for name in ("model", "adapter", "checkpoints/4"):
        shutil.rmtree(stage / name)
    (stage / "done.json").unlink()
    assert micro.command(folder, *COMMANDS[recipe]) == 0
    again, before = (arrays(where / FOLDERS[recipe] / "model") for where in (folder, home))
    assert not differing(again, before)


def test_another_base_is_refused(home, tmp_path, capfd):
    folder = Path(shutil.copytree(home, tmp_path / "copy"))
    shutil.rmtree(folder / "judge" / "model")
    (folder / "judge" / "done.json").unlink()
    shutil.rmtree(folder / "run" / "sft" / "model")
    shutil.copytree(folder / "run" / "pretrain" / "model", folder / "run" / "sft" / "model")
    assert micro.command(folder, *COMMANDS["reward"]) == 2
    assert "judge: its model was begun on" in " ".join(capfd.readouterr().err.split())
    path = (
        folder / "judge" / "base_model.json"
    )  # names the base of the original, which is as it was
    assert micro.command(folder, "export", "judge", "step=4", "output=out") == 0
    values = json.loads(path.read_text())
    values["model"]["path"] = str(folder / "run" / "sft" / "model")
    path.write_text(json.dumps(values))
    capfd.readouterr()
    assert micro.command(folder, "export", "judge", "step=4", "output=out") == 2
    assert "judge: its model was begun on" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((*COMMANDS["sft"], "model_path=null"), "lora: adapters need a model to adapt"),
        ((*COMMANDS["sft"], "resize_vocabulary=true"), "lora trains no embeddings"),
        ((*COMMANDS["sft"], "lora.targets=[q_prof]"), "lora.targets: 'q_prof' is no projection"),
        ((*COMMANDS["reward"], "pooling=mean"), "cannot say final_norm: false or pooling: mean"),
        ((*COMMANDS["reward"], "model_path=judge/adapter"), "adapts a reward model"),
        ((*COMMANDS["ppo"], "reward_model=better/adapter"), "adapts a language model"),
    ],
)
def test_refusals(home, argv, words, capfd):
    assert micro.command(home, *argv, "output_dir=nowhere") == 2
    assert words in " ".join(capfd.readouterr().err.split())
    assert not (home / "nowhere").exists()


def test_an_adapter_without_its_base_says_so(home, tmp_path, capfd):
    folder = Path(shutil.copytree(home / "better" / "adapter", tmp_path / "adapter"))
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "gone")}))
    assert micro.command(home, "generate", str(folder), "prompt=a") == 2
    assert "its base model" in " ".join(capfd.readouterr().err.split())
    path.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    assert micro.command(home, "generate", str(folder), "prompt=a") == 2
    assert "base_model_name_or_path is missing" in " ".join(capfd.readouterr().err.split())


def test_over_a_mesh(home):
    """Base, adapters and scales lie on it, and the updates are those of one device.

    Up to what Adam makes of rounding: a step of .05 for a gradient of any size, four times.
    """
    argv = [x.replace("tuned", "spread") for x in COMMANDS["sft"]]
    assert micro.command(home, *argv, "mesh.data=2", "mesh.tensor=2") == 0
    one, four = (arrays(home / name / "model") for name in ("tuned", "spread"))
    for name in one:
        np.testing.assert_allclose(one[name], four[name], atol=2e-3)
