"""Small experiments that show what a config field does, for `test_config_effects.py`.

A probe takes overrides (`"a.b=c"`), and returns something that can be compared: the program of an
update as text, the arrays of a first batch, the files that were written. Here are the groups that
recipes share, and what every training stage does with its folder; recipes are `recipe_probes.py`.
"""

import contextlib
import gzip
import json
import re
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import micro
import numpy as np
import tables
import test_loop
import tiny

from jaxrlhf import inference
from jaxrlhf.algorithms import ppo
from jaxrlhf.algorithms.rollouts import visible
from jaxrlhf.data import formats
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import UserError
from jaxrlhf.metrics import read_metrics
from jaxrlhf.models import make_lm
from jaxrlhf.optim import OptimizerConfig, make_optimizer
from jaxrlhf.recipes import (
    blocks,
    ppo_config,
    ppo_given,
    rows,
    sample,
    sft,
    simulate_labels,
    stages,
)
from jaxrlhf.recipes.tasks import TaskConfig
from jaxrlhf.sandbox.labeller import Labeller

Overrides = tuple[str, ...]


def program(fn: Callable, *args: Any) -> str:
    """What `fn` computes, as text without addresses."""
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(fn)(*args)))


def content(tree: Any) -> str:
    """Names, shapes and values of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return repr(
        [(jax.tree_util.keystr(p), np.shape(x), np.asarray(x).tobytes()) for p, x in leaves]
    )


def shapes(tree: Any) -> str:
    return str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree))


# Groups that several recipes share, each through what reads it.


def optimizer(*overrides: str) -> str:
    """The update of an optimiser, and its step sizes."""
    config = OptimizerConfig.load(None, overrides)
    made = make_optimizer(total_steps=10, **config.model_dump())
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    return program(made.update, params, made.init(params), params)


def model(*overrides: str) -> str:
    """Parameters and gradient of a model for 9 words, and whether it reads 40 tokens."""
    config = blocks.ModelConfig.load(
        None, ("d_model=16", "num_layers=1", "num_heads=2", "max_positions=40", *overrides)
    )
    lm = make_lm(config.build(9))
    params = jax.eval_shape(lm.init, jax.random.key(0))

    def loss(params):
        tokens = jnp.zeros((1, 4), jnp.int32)
        return lm.logits(params, lm.hidden(params, tokens, tokens == 0)).sum()

    found = shapes(params) + program(jax.grad(loss), params)
    return found + refusal(lambda: rows.check_length(lm, 40))


def refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def settings(*overrides: str) -> str:
    """What PPO of a table starts with beside its parameters, and the program of its update."""
    config = ppo_config.SettingsConfig.load(None, ("num_ppo_epochs=2", *overrides))
    made, key = blocks.settings_of(config, ppo.Settings), jax.random.key(0)
    algorithm = ppo.ppo(
        *(tables.LM_TABLE, tables.table(4), tables.odd_share),
        *(tables.sgd(1.0), tables.sampling(max_new_tokens=6), made),
    )
    state = algorithm.init(tables.params(made), key)
    return content(state.extra) + program(algorithm.update, state, rollouts(tables.prompts()), key)


def rollouts(prompts: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of 6-token answers."""
    size, length = prompts["prompt_tokens"].shape
    whole, new = (size, length + 6), (size, 6)
    named = {"tokens": (whole, "int32"), "mask": (whole, "bool")}
    for name in ("log_probs", "entropy", "ref_log_probs", "values", "sampler_log_probs"):
        named[name] = new, "float32"
    named |= {"scores": ((size,), "float32"), "complete": ((size,), "bool")}
    return {name: jax.ShapeDtypeStruct(*x) for name, x in named.items()}


def tokenizer(*overrides: str) -> str:
    texts = write("texts.txt", "a soup and a pie\nthe cook\n" * 3)
    config = sft.SFTConfig.load(
        None, (f"data.train=[{texts}]", *(f"tokenizer.{text}" for text in overrides))
    )
    return repr(sorted(sft.make_tokenizer(config).get_vocab()))


def data(*overrides: str) -> str:
    """The texts that are read from a file with a bad row, or the refusal."""
    lines = [{"text": "a", "other": "b"}, {"text": "c", "other": "d"}, {"text": 3, "other": "e"}]
    write("rows.jsonl", "\n".join(map(json.dumps, lines)))
    found: list[str] = []

    def read() -> None:
        config = blocks.DataConfig.load(None, ("train=[rows.jsonl]", *overrides))
        loaded = rows.read(config, config.train, formats.texts, field="train")
        found.extend(item.text for item in loaded)

    with contextlib.chdir(micro.scratch()):
        error = refusal(read)
    return error + repr(found)


def prompts(*overrides: str) -> str:
    write("prompts.jsonl", '{"prompt": "a soup"}\n{"prompt": "the kind cook", "other": "a pie"}\n')
    write("more.jsonl", '{"prompt": "a soup", "other": "a cake"}\n')
    words = tokenizers.word_tokenizer(["a", "the", "kind", "soup", "pie", "cake", "cook"])
    with contextlib.chdir(micro.scratch()):
        config = rows.PromptsConfig.load(None, ("files=[prompts.jsonl]", *overrides))
        found, _ = rows.prompts(words, config, field="prompts")
    return content(dict(found.columns))


def sampling(*overrides: str) -> str:
    """The program that draws responses for the tiny model (end token 2, padding 0)."""
    config = sample.SamplingConfig.load(None, ("response_length=4", *overrides))
    words = tokenizers.word_tokenizer(["soup", "pie"])  # its pad is token 0, its end token 2
    prompt, keys = np.full((2, 2), 4, np.int32), jax.random.split(jax.random.key(0), 2)

    def draw(params):
        made = inference.generate(tiny.LM, params, prompt, prompt > 0, keys, config.build(words))
        return made.tokens, made.log_probs

    return program(draw, jax.eval_shape(tiny.LM.init, jax.random.key(0)))


def truncation(*overrides: str) -> str:
    """What a reward sees of "<eos> is token 2, the words are 4 and 5" responses."""
    config = ppo_config.TruncationConfig.load(None, overrides)
    words = tokenizers.word_tokenizer(["soup", "pie"])
    tokens = jnp.array([[4, 5, 4, 5, 4], [4, 4, 5, 2, 0]])
    rollout = inference.Generation(
        tokens, tokens > 0, jnp.zeros((2, 4)), finished=jnp.array([False, True])
    )
    return content(visible(rollout, ppo_given.make_truncation(config, words)))


def mesh(*overrides: str) -> str:
    return str(blocks.MeshConfig.load(None, overrides).build())


def world(*overrides: str) -> str:
    found: list[Any] = []

    def build() -> None:
        made = simulate_labels.WorldConfig.load(None, overrides).build()
        texts = [row["text"] for row in made.corpus(5, seed=0)]
        found.append((texts, made.gold("", "the kind kind kind warm kind")))

    return refusal(build) + repr(found)


def labeller(*overrides: str) -> str:
    """Rows and verdicts on answers whose length is what is good about them."""
    config = simulate_labels.LabellerConfig.load(None, overrides)
    judge = Labeller(
        lambda prompt, text: float(len(text)), temperature=config.temperature, lapse=config.lapse
    )
    return repr([judge.preference_row("a", "x" * n, "y" * (n + 1)) for n in range(1, 12)])


def task(*overrides: str) -> str:
    """The files of a task, of this sandbox or of these reviews."""
    folder = micro.scratch() / "reviews"
    if not folder.exists():
        write_reviews(folder)
    few = [f"sandbox.{name}=4" for name in ("documents", "demonstrations", "prompts")]
    reviews = [f"sentiment.sst2={folder}", "sentiment.shortest_phrase=2"]
    config = TaskConfig.load(None, (*few, "sandbox.test_prompts=4", *reviews, *overrides))
    out = micro.scratch() / "task"
    found: list[str] = []

    def prepare() -> None:
        made = config.prepare(out, seed=0)._asdict()
        for name, files in made.items():
            if name not in ("judge", "tokenizer"):
                found.append(name + "".join(Path(file).read_text() for file in files))

    return refusal(prepare) + repr(found)


def write(name: str, text: str) -> Path:
    path = micro.scratch() / name
    path.write_text(text)
    return path


def write_reviews(folder: Path) -> None:
    folder.mkdir()
    words = {"superb": 1, "moving": 1, "clever": 1, "dreadful": 0, "boring": 0, "clumsy": 0}

    def review(word: str, thing: str, place: str) -> dict:
        return {"sentence": f"this {thing} by {place} is {word} .", "label": words[word]}

    things = ("plot", "film", "cast", "score", "script", "story")
    files = {
        "train_sentences": [
            review(w, t, p) for w in words for t in things for p in ("him", "her", "you", "us")
        ],
        "dev_sentences": [review(w, t, "them") for w in words for t in things],
        "train_phrases": [
            {"sentence": f"{t} by {p} is {w}", "label": words[w]}
            for w in words
            for t in things
            for p in ("him", "her")
        ],
    }
    for name, found in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    (folder / "plain.txt").write_text("A long and winding road.\n")


# What every training stage does with its folder, with an algorithm of one number.


def folder(*overrides: str) -> str:
    """What is on disk after six steps of a stage, and what W&B and the profiler were told."""
    wandb, told = types.ModuleType("wandb"), []
    wandb.init = lambda **options: told.append(options["project"]) or mock.MagicMock(step=0)  # type: ignore[attr-defined]
    home = new_folder()
    with (
        contextlib.chdir(home),
        mock.patch.dict(sys.modules, {"wandb": wandb}),
        mock.patch.object(jax.profiler, "start_trace", lambda path, **_: told.append(str(path))),
        mock.patch.object(jax.profiler, "stop_trace"),
    ):
        fixed = ("output_dir=here", "save_steps=2", "keep_checkpoints=9")
        stage = stages.TrainingStage(blocks.TrainConfig.load(None, (*fixed, *overrides)))
        stages.train(
            stage,
            test_loop.Toy().algorithm(),
            test_loop.PARAMS,
            test_loop.batches(),
            steps=6,
            mesh=stage.config.mesh.build(),
        )
        kept = sorted(str(p.relative_to(home)) for p in home.glob("*/checkpoints/*"))
        logs = sorted(str(p.relative_to(home)) for p in home.glob("*/tensorboard"))
        noise = [row["noise"] for path in home.glob("*") for row in read_metrics(path)]
    return repr((kept, logs, noise, told))


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=micro.scratch()))
