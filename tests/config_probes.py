"""Small experiments that show what a config field does, for `test_config_effects.py`.

A probe takes overrides (`"a.b=c"`), and returns something that can be compared: the program of an
update as text, the arrays of a first batch, the files that were written. `training_stage` and its
like run a recipe up to the point where training would begin, on the models and files of the tiny
pipeline (`micro.py`).
"""

import contextlib
import functools
import gzip
import json
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import micro
import numpy as np
import test_loop
import tiny

from jaxrlhf import inference, rewards
from jaxrlhf.algorithms import ppo as ppo_algorithm
from jaxrlhf.algorithms.rollouts import visible
from jaxrlhf.data import formats
from jaxrlhf.errors import UserError
from jaxrlhf.metrics import read_completions, read_metrics
from jaxrlhf.models import heads, make_lm
from jaxrlhf.optim import OptimizerConfig, make_optimizer
from jaxrlhf.recipes import common, ppo, reward, rlhf, rows, sample, seeds, sft, simulate_labels
from jaxrlhf.recipes.tasks import Task, TaskConfig
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
    config = common.ModelConfig.load(
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
        config = common.DataConfig.load(None, ("train=[rows.jsonl]", *overrides))
        loaded = rows.read(config, config.train, formats.texts, field="train")
        found.extend(item.text for item in loaded)

    with contextlib.chdir(micro.scratch()):
        error = refusal(read)
    return error + repr(found)


def prompts(*overrides: str) -> str:
    write("prompts.jsonl", '{"prompt": "a soup"}\n{"prompt": "the kind cook", "other": "a pie"}\n')
    write("more.jsonl", '{"prompt": "a soup", "other": "a cake"}\n')
    words = common.tokenizers.word_tokenizer(["a", "the", "kind", "soup", "pie", "cake", "cook"])
    with contextlib.chdir(micro.scratch()):
        config = rows.PromptsConfig.load(None, ("files=[prompts.jsonl]", *overrides))
        found, _ = rows.prompts(words, config, field="prompts")
    return content(dict(found.columns))


def sampling(*overrides: str) -> str:
    """The program that draws responses for the tiny model (end token 2, padding 0)."""
    config = sample.SamplingConfig.load(None, ("response_length=4", *overrides))
    ids = types.SimpleNamespace(eos_token_id=2, pad_token_id=0)
    prompt, keys = np.full((1, 2), 4, np.int32), jax.random.split(jax.random.key(0), 1)

    def draw(params):
        made = inference.generate(tiny.LM, params, prompt, prompt > 0, keys, config.build(ids))
        return made.tokens, made.log_probs

    return program(draw, jax.eval_shape(tiny.LM.init, jax.random.key(0)))


def truncation(*overrides: str) -> str:
    """What a reward sees of "<eos> is token 2, the words are 4 and 5" responses."""
    config = ppo.TruncationConfig.load(None, overrides)
    words = common.tokenizers.word_tokenizer(["soup", "pie"])
    tokens = jnp.array([[4, 5, 4, 5, 4], [4, 4, 5, 2, 0]])
    rollout = inference.Generation(
        tokens, tokens > 0, jnp.zeros((2, 4)), finished=jnp.array([False, True])
    )
    return content(visible(rollout, ppo.make_truncation(config, words)))


def mesh(*overrides: str) -> str:
    return str(common.MeshConfig.load(None, overrides).build())


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
            {"sentence": f"{w} {t} it is", "label": words[w]} for w in words for t in things
        ],
    }
    for name, found in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    (folder / "plain.txt").write_text("A long and winding road.\n")


# What every training stage does with its folder, with an algorithm of one number.


def folder_of(recipe: str, *overrides: str) -> str:
    """What is on disk after six steps of a stage, and what W&B was told."""
    cls = {"sft": sft, "reward": reward, "ppo": ppo}[recipe].CONFIG
    wandb, told = types.ModuleType("wandb"), []
    wandb.init = lambda **options: told.append(options["project"]) or mock.MagicMock(step=0)  # type: ignore[attr-defined]
    home = new_folder()
    with contextlib.chdir(home), mock.patch.dict(sys.modules, {"wandb": wandb}):
        fixed = ("output_dir=here", "save_steps=2", "keep_checkpoints=9", "tensorboard=false")
        stage = common.TrainingStage(cls.load(None, (*fixed, *overrides)))
        common.train(
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


# Recipes up to where training, or sampling, would begin.


class Enough(Exception):
    """The recipe has come far enough."""


class Stage:
    """What a training recipe hands to `common.train`."""

    def __init__(self, given: dict[str, Any], evaluations: list[tuple]):
        self.given, self.evaluations = given, evaluations
        self.steps, self.mesh = given["steps"], str(given["mesh"])
        self.config = given["stage"].config

    @functools.cached_property
    def params(self) -> str:
        return content(self.given["params"])

    @functools.cached_property
    def first(self) -> dict[str, np.ndarray]:
        return next(self.given["batches"])

    @property
    def batch(self) -> str:
        return content(self.first)

    @functools.cached_property
    def update(self) -> str:
        """The program of one update; PPO's is asked about 6-token answers."""
        algorithm, key = self.given["algorithm"], jax.random.key(0)
        state = jax.eval_shape(algorithm.init, self.given["params"], key)
        batch = rollouts(self.first) if "prompt_tokens" in self.first else self.first
        return shapes(state.extra) + program(algorithm.update, state, batch, key)

    @functools.cached_property
    def initial(self) -> str:
        algorithm = self.given["algorithm"]
        return content(algorithm.init({"w": jnp.zeros(())}, jax.random.key(0)).extra)


def rollouts(prompts: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    size, length = prompts["prompt_tokens"].shape
    whole, new = (size, length + 6), (size, 6)
    named = {"tokens": (whole, "int32"), "mask": (whole, "bool")}
    for name in ("log_probs", "entropy", "ref_log_probs", "values", "sampler_log_probs"):
        named[name] = new, "float32"
    named |= {"scores": ((size,), "float32"), "complete": ((size,), "bool")}
    return {name: jax.ShapeDtypeStruct(*x) for name, x in named.items()}


@functools.cache
def training_stage(recipe: str, *overrides: str) -> Stage:
    """The stage that `recipe` would train, with the config of the tiny pipeline's and overrides."""
    module, base = {"sft": (sft, SFT), "reward": (reward, REWARD), "ppo": (ppo, PPO)}[recipe]
    given: dict[str, Any] = {}
    evaluations: list[tuple] = []

    def train(stage, algorithm, params, batches, **options):
        given.update(options, stage=stage, algorithm=algorithm, params=params, batches=batches)
        raise Enough

    def every(interval, steps, evaluate, *, first=False):
        evaluations.append((interval, steps, first, evaluate))
        return lambda *_: {}

    with (
        contextlib.chdir(micro.pipeline()),
        mock.patch.object(common, "train", train),
        mock.patch.object(common, "every", every),
        contextlib.suppress(Enough),
    ):
        module.run(module.CONFIG.load(None, (*base, *overrides)))
    return Stage(given, evaluations)


SFT: Overrides = (
    "output_dir=unused",
    "data.train=[run/data/demonstrations.jsonl]",
    "tokenizer.path=run/data/tokenizer",
    "max_length=40",
    "batch_size=8",
    "max_steps=8",
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.max_positions=48",
)
REWARD: Overrides = (
    "output_dir=unused",
    "model_path=run/sft/model",
    "data.train=[run/label/preferences.jsonl]",
    "max_length=40",
    "batch_size=8",
    "max_steps=8",
    "normalize=none",
)
PPO: Overrides = (
    "output_dir=unused",
    "policy=run/sft/model",
    "reward_model=run/reward/model",
    "prompts.files=[run/data/prompts.jsonl]",
    "sampling.response_length=6",
    "batch_size=8",
    "max_steps=8",
    "ppo.num_ppo_epochs=2",
)


def part(recipe: str, name: str) -> Callable[..., Any]:
    """A probe: attribute `name` of what the recipe would train."""
    return lambda *overrides: getattr(training_stage(recipe, *overrides), name)


def refused(recipe: str) -> Callable[..., str]:
    """A probe: why the recipe refuses its data, if it does."""
    return lambda *overrides: refusal(lambda: training_stage(recipe, *overrides))


def has_evaluation(recipe: str) -> Callable[..., Any]:
    return lambda *o: [found[:3] for found in training_stage(recipe, *o).evaluations]


def asked(recipe: str) -> Callable[..., str]:
    """A probe: what the recipe asks a model to answer: prompts, keys, sampling, parameters."""
    module, base = {"reward": (reward, REWARD), "sample": (sample, SAMPLE)}[recipe]

    def probe(*overrides: str) -> str:
        calls: list[str] = []

        def generate(lm, params, prompts, mask, keys, sampling):
            arrays = (params, prompts, mask, jax.random.key_data(keys))
            where = str(jax.tree.leaves(params)[0].sharding)
            calls.append(content(arrays) + where + str(sampling))
            if recipe == "reward":
                raise Enough
            tokens = np.concatenate([prompts, np.full((len(mask), 6), 4)], axis=1)
            drawn = np.zeros((len(mask), 6), np.float32)
            return inference.Generation(tokens, tokens > 0, drawn, tokens[:, 0] > 0)  # type: ignore[arg-type]

        out = new_folder()
        with (
            contextlib.chdir(micro.pipeline()),
            mock.patch.object(inference, "generate", generate),
            contextlib.suppress(Enough),
        ):
            module.run(module.CONFIG.load(None, (*base, f"output_dir={out}", *overrides)))
        return repr(calls)

    return probe


SAMPLE: Overrides = (
    "model_path=run/sft/model",
    "prompts.files=[run/data/prompts.jsonl]",
    "prompts.limit=8",
    "sampling.response_length=6",
    "batch_size=4",
)


def labels(*overrides: str) -> str:
    """All files that judging the tiny pipeline's samples leaves."""
    home = new_folder()
    base = (f"output_dir={home}/out", "samples=run/sample/samples.jsonl")
    with contextlib.chdir(micro.pipeline()):
        simulate_labels.run(simulate_labels.CONFIG.load(None, (*base, *overrides)))
    files = sorted(path for path in home.rglob("*") if path.suffix == ".jsonl")
    return repr([(str(path.relative_to(home)), path.read_text()) for path in files])


class Seen(NamedTuple):
    """What PPO's reward says about a fixed rollout, and the table of held-out completions."""

    scores: str
    completions: list[dict]
    truncation: Any


@functools.cache
def ppo_seen(*overrides: str) -> Seen:
    rewards_seen, options_seen = [], []
    made = ppo_algorithm.ppo

    def spy(lm, reference, reward_fn, *args, **options):
        rewards_seen.append(reward_fn)
        options_seen.append(options)
        return made(lm, reference, reward_fn, *args, **options)

    out = new_folder()
    with mock.patch.object(ppo_algorithm, "ppo", spy):
        stage = training_stage("ppo", f"output_dir={out}", *overrides)
    tokens = jnp.tile(jnp.arange(4, 12, dtype=jnp.int32), (8, 1))
    rollout = rewards.Rollout(tokens, tokens > 0, 2, np.arange(8))
    scores = content(rewards.as_scores(rewards_seen[0](rollout), batch_size=8))
    completions: list[dict] = []
    if stage.evaluations:
        log = stage.given["open_log"](0)
        algorithm, key = stage.given["algorithm"], jax.random.key(0)
        stage.evaluations[0][-1](algorithm.init(stage.given["params"], key))
        log.close()
        completions = read_completions(out)
    return Seen(scores, completions, options_seen[0]["truncation"])


def scores(*overrides: str) -> str:
    return ppo_seen(*overrides).scores


def completions(*overrides: str) -> list[dict]:
    return ppo_seen(*overrides).completions


def truncation_of_ppo(*overrides: str) -> str:
    return repr(ppo_seen(*overrides).truncation)


def by_letters(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward rule, for `reward_function`."""
    return [float(len(text)) for text in completions]


def by_words(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


OTHER_REWARD = f"{micro.scratch()}/other_reward"
FEWER_SAMPLES = f"{micro.scratch()}/fewer_samples.jsonl"
REFERENCE: Overrides = (
    "normalize=reference",
    "reference=run/sft/model",
    "prompts.files=[run/data/prompts.jsonl]",
    "sampling.response_length=6",
)


def make_other_reward() -> None:
    """A reward model that scores twice as high."""
    folder = str(micro.pipeline() / "run" / "reward" / "model")
    model, params, words = common.load_scalar(folder, common.MeshConfig().build())
    common.save_scalar(Path(OTHER_REWARD), model, heads.affine(params, 2.0, 0.0), words)


def make_fewer_samples() -> None:
    path = micro.pipeline() / "run" / "sample" / "samples.jsonl"
    Path(FEWER_SAMPLES).write_text("".join(path.read_text().splitlines(keepends=True)[:9]))


# The pipeline and its repetition, with stages that only say that they were called.


def pipeline(*overrides: str) -> dict[str, Any]:
    """Stage name -> the config it is given, for the stages that are run."""
    found: dict[str, Any] = {}
    config = rlhf.RLHFConfig.load(micro.pipeline() / "micro.yaml", overrides)
    with contextlib.chdir(new_folder()), stand_ins(found):
        rlhf.run(config)
    return found


def plan(config: rlhf.RLHFConfig) -> dict[str, Any]:
    """The same without running anything, for a task that brings no file."""
    found: dict[str, Any] = {}
    with stand_ins(found):
        for action in rlhf.plan(config, Task()).values():
            action()
    return found


@contextlib.contextmanager
def stand_ins(found: dict[str, Any]) -> Iterator[None]:
    """Stages that only note what they are given."""

    def run(config: Any, *others: Any, **options: Any) -> dict[str, Any]:
        name = "report" if others else Path(config.output_dir).name
        found[name] = (others[0] if others else config).model_dump()
        return {}

    with contextlib.ExitStack() as stack:
        for name in ("sft", "sample", "simulate_labels", "reward", "ppo", "report_rlhf"):
            stack.enter_context(mock.patch.object(getattr(rlhf, name), "run", run))
        yield


def repetition(*overrides: str) -> str:
    """Which pipelines are run, what is said about them, and what is written."""
    ran: list[Any] = []
    summary = json.loads((micro.pipeline() / "run" / "summary.json").read_text())
    passing = {"gold_gain_sd": 2.0, "kl": 1.0, "legal_share": 0.9, "reward_accuracy": 0.7}

    def run(config: rlhf.RLHFConfig) -> dict[str, Any]:
        ran.append((config.output_dir, config.seed, config.ppo.max_steps))
        return summary | passing | {"gold_gain_sd": 1.5 if config.seed == 1 else 2.0}

    fixed = (
        f"config={micro.pipeline() / 'micro.yaml'}",
        "seeds=[1, 2]",
        "min_gain=1.4",
        "min_legal=0.8",
        "min_passes=2",
    )
    home = new_folder()
    with (
        contextlib.chdir(home),
        mock.patch.object(rlhf, "run", run),
        mock.patch.object(seeds, "picture", lambda *_: None),
        mock.patch.object(seeds.plots, "png", lambda _: b""),
    ):
        verdict = seeds.run(seeds.SeedsConfig.load(None, (*fixed, *overrides)))
    return repr((ran, verdict, sorted(path.name for path in home.rglob("*.md"))))
