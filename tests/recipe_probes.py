"""Recipes run up to where something long would begin, for `test_config_effects.py`.

Training stages stop where `stages.train` is called and are asked what they would train; stages
that draw answers get a stand-in for the sampler; the pipeline gets stand-ins for its stages. They
run on the models and files of the tiny pipeline (`micro.py`).
"""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import micro
import numpy as np
from config_probes import Overrides, content, new_folder, program, refusal, rollouts, shapes

from jaxrlhf import inference, plots, rewards
from jaxrlhf.algorithms import ppo as ppo_algorithm
from jaxrlhf.algorithms.base import State
from jaxrlhf.data import preferences
from jaxrlhf.hf import folder
from jaxrlhf.metrics import read_completions
from jaxrlhf.models import heads
from jaxrlhf.recipes import (
    blocks,
    classify,
    export,
    generate,
    guarded,
    inspect_model,
    lab_sign_flip,
    lab_sign_flip_report,
    ppo,
    reward,
    rlhf,
    sample,
    saved,
    seeds,
    sft,
    simulate_labels,
    stages,
)
from jaxrlhf.recipes.tasks import Task

# Recipes up to where training, or sampling, would begin.


class Enough(Exception):
    """The recipe has come far enough."""


class Stage:
    """What a training recipe hands to `stages.train`."""

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
        frozen = () if algorithm.frozen is None else (algorithm.frozen,)
        return shapes(state.extra) + program(algorithm.update, state, batch, key, *frozen)

    @functools.cached_property
    def collected(self) -> str:
        """The batch of an update, in names and shapes."""
        algorithm, key = self.given["algorithm"], jax.random.key(0)
        return shapes(algorithm.collect(None, lambda: self.first, key)[0])

    @functools.cached_property
    def frozen(self) -> str:
        return content(self.given["algorithm"].frozen)


@functools.cache
def training_stage(recipe: str, *overrides: str) -> Stage:
    """The stage that `recipe` would train, with the config of the tiny pipeline's and overrides."""
    module, base = {
        "sft": (sft, SFT),
        "reward": (reward, REWARD),
        "ppo": (ppo, PPO),
        "classify": (classify, CLASSIFY),
    }[recipe]
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
        mock.patch.object(stages, "train", train),
        mock.patch.object(stages, "every", every),
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


LABELLED = f"{micro.scratch()}/labelled.jsonl"
CLASSIFY: Overrides = (
    "output_dir=unused",
    "model_path=run/sft/model",
    f"data.train=[{LABELLED}]",
    "max_length=40",
    "batch_size=8",
    "max_steps=8",
)


def part(recipe: str, name: str) -> Callable[..., Any]:
    """A probe: attribute `name` of what the recipe would train."""
    return lambda *overrides: getattr(training_stage(recipe, *overrides), name)


def refused(recipe: str) -> Callable[..., str]:
    """A probe: why the recipe refuses its data, if it does."""
    return lambda *overrides: refusal(lambda: training_stage(recipe, *overrides))


def has_evaluation(recipe: str) -> Callable[..., Any]:
    return lambda *o: [found[:3] for found in training_stage(recipe, *o).evaluations]


class Asked(NamedTuple):
    """What a recipe asks a model (prompts, keys, sampling, parameters), and what it writes."""

    calls: str
    files: list[str]
    rows: list[str]


def asked(recipe: str, part: str = "calls") -> Callable[..., Any]:
    """A probe: what the recipe asks a model to answer, or what it writes."""
    module, base = {"reward": (reward, REWARD), "sample": (sample, SAMPLE)}[recipe]

    def probe(*overrides: str) -> Any:
        calls: list[str] = []

        def generate(lm, params, prompts, mask, keys, sampling):
            arrays = (params, prompts, mask, jax.random.key_data(keys))
            places = [str(getattr(x, "sharding", "")) for x in jax.tree.leaves((params, prompts))]
            calls.append(content(arrays) + str(places) + str(sampling) + str(lm.config))
            if recipe == "reward":
                raise Enough
            prompts = np.repeat(prompts, keys.size // len(mask), axis=0)
            tokens = np.concatenate([prompts, np.full((keys.size, 6), 4)], axis=1)
            drawn = np.zeros((keys.size, 6), np.float32)
            return inference.Generation(tokens, tokens > 0, drawn, tokens[:, 0] > 0)  # type: ignore[arg-type]

        home = new_folder()
        with (
            contextlib.chdir(micro.pipeline()),
            mock.patch.object(inference, "generate", generate),
            contextlib.suppress(Enough),
        ):
            module.run(module.CONFIG.load(None, (*base, f"output_dir={home}/out", *overrides)))
        files = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
        rows = [path.read_text() for path in home.rglob("*.jsonl")]
        return getattr(Asked(repr(calls), files, rows), part)

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
    options: dict[str, Any]
    reference: str


@functools.cache
def ppo_seen(*overrides: str) -> Seen:
    rewards_seen, options_seen, references_seen = [], [], []
    made = ppo_algorithm.ppo

    def spy(lm, reference, reward_fn, *args, **options):
        rewards_seen.append(reward_fn)
        options_seen.append(options)
        references_seen.append(content(reference))
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
    return Seen(scores, completions, options_seen[0], references_seen[0])


def scores(*overrides: str) -> str:
    return ppo_seen(*overrides).scores


def completions(*overrides: str) -> list[dict]:
    return ppo_seen(*overrides).completions


def guards_of_ppo(*overrides: str) -> str:
    """How the guards of a PPO run are set, as the one who watches has them."""
    made: list[Any] = []
    begin = guarded.Guarded.__init__

    def spy(self, config, run, **options):
        made.append((config, sorted(run.others), run.compare))
        begin(self, config, run, **options)

    with mock.patch.object(guarded.Guarded, "__init__", spy):
        training_stage.__wrapped__("ppo", *overrides)
    return repr(made)


def first_is_better(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """A labeller, for `guards.labeller`."""
    return True


CANARIES: Overrides = ("guards.canary.files=[run/label/test_preferences.jsonl]",)


def first_figures(*overrides: str) -> str:
    """What guards find before training, of the tiny pipeline's own test pairs."""
    return repr(training_stage("ppo", *overrides).given["hooks"][-1](0, None, None))


def truncation_of_ppo(*overrides: str) -> str:
    return repr(ppo_seen(*overrides).options["truncation"])


def packing_of_ppo(*overrides: str) -> str:
    return ppo_seen(*overrides).options["packing"]


def reference_of_ppo(*overrides: str) -> str:
    return ppo_seen(*overrides).reference


def arrives(*overrides: str) -> list[str]:
    """Whether PPO ends, by the KL of an evaluation."""
    given = training_stage("ppo", *overrides).given
    with contextlib.chdir(new_folder()):
        given["open_log"](0).close()
    return [repr(given["watch"](1, {"eval/kl": kl})) for kl in (2.0, 4.0)]


def by_letters(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward rule, for `reward_function`."""
    return [float(len(text)) for text in completions]


def by_words(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


# Commands that look at models or use them.


def inspected(*overrides: str) -> str:
    """All that is said of a model."""
    with contextlib.chdir(micro.pipeline()):
        base = ("path=run/sft/model", *overrides)
        return repr(inspect_model.run(inspect_model.CONFIG.load(None, base)))


def generated(*overrides: str) -> str:
    """What a model is asked, and where answers are written."""
    calls: list[str] = []

    def stream(lm, weights, prompt, key, sampling):
        calls.append(f"{prompt} {jax.random.key_data(key)} {sampling} {lm.config}")
        calls.append(content(weights))
        return iter(())

    def answer(lm, params, prompts, mask, keys, sampling):
        arrays = (params, prompts, mask, jax.random.key_data(keys))
        places = [str(getattr(x, "sharding", "")) for x in jax.tree.leaves((params, prompts))]
        calls.append(content(arrays) + str(places) + str(sampling) + str(lm.config))
        tokens = np.concatenate([prompts, np.full((len(mask), 6), 4)], axis=1)
        drawn = np.zeros((len(mask), 6), np.float32)
        return inference.Generation(tokens, tokens > 0, drawn, tokens[:, 0] > 0)  # type: ignore[arg-type]

    def write_rows(path, records):
        calls.append(f"{path} {records}")

    with (
        contextlib.chdir(micro.pipeline()),
        mock.patch.object(inference, "stream", stream),
        mock.patch.object(inference, "generate", answer),
        mock.patch.object(preferences, "write_rows", write_rows),
    ):
        base = ("path=run/sft/model", "sampling.response_length=6", *overrides)
        generate.run(generate.CONFIG.load(None, base))
    return repr(calls)


ONE_PROMPT: Overrides = ("prompt=the waiter",)
PROMPT_FILE: Overrides = (
    "prompts.files=[run/data/prompts.jsonl]",
    "prompts.limit=8",
    "batch_size=4",
    "output=answers.jsonl",
)


def exported(*overrides: str) -> list[tuple[str, bytes]]:
    """The files that an export writes."""
    home = new_folder()
    with contextlib.chdir(micro.pipeline()):
        base = ("path=run/sft/model", f"output={home}/out", *overrides)
        export.run(export.CONFIG.load(None, base))
    files = sorted(path for path in home.rglob("*") if path.is_file())
    return [(str(path.relative_to(home)), path.read_bytes()) for path in files]


PADDED = f"{micro.scratch()}/padded"
FEWER_WORDS = f"{micro.scratch()}/fewer_words"
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
    model, params, words, _ = saved.load_scalar(folder, blocks.MeshConfig().build())
    saved.save_scalar(Path(OTHER_REWARD), model, heads.affine(params, 2.0, 0.0), words)


def make_other_vocabularies() -> None:
    """A model that lacks the last words of its tokenizer, and one with rows to spare."""
    path = str(micro.pipeline() / "run" / "sft" / "model")
    lm, params, words, _ = saved.load_lm(path, blocks.MeshConfig().build())
    for where, rows in ((FEWER_WORDS, len(words) - 9), (PADDED, len(words) + 8)):
        folder.save_lm(where, lm, params, tokenizer=words, vocab_size=rows)


def make_labelled() -> None:
    """Texts with a label, a class each for soup and pie."""
    rows = [
        {"text": f"the kind {who} brought a warm {dish} .", "label": int(dish == "soup")}
        for who in ("waiter", "cook", "guest", "baker")
        for dish in ("soup", "pie")
        for _ in range(2)
    ]
    preferences.write_rows(Path(LABELLED), rows)


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


def sign_flip(*overrides: str) -> str:
    """What the laboratory runs, what a round asks of its labeller, and what is written."""
    ran: list[Any] = []
    home = new_folder()

    def run(config: rlhf.RLHFConfig) -> dict[str, Any]:
        ran.append((config.output_dir, config.seed, config.test_preferences))
        shutil.copytree(micro.pipeline() / "run", config.output_dir, dirs_exist_ok=True)
        return {}

    def train(config: ppo.PPOConfig, *, hooks: Sequence[Any] = (), **options: Any) -> dict:
        ran.append((config.output_dir, config.seed, config.max_steps, config.eval_steps))
        stages.write_json(Path(config.output_dir) / "guards.json", {"found": {}, "stopped": None})
        policy = saved.load_lm(str(config.policy), blocks.MeshConfig().build()).params
        for step in range(1, (config.max_steps or 0) + 1):
            for hook in hooks:
                hook(step, State(jnp.int32(step), {"policy": policy}, {}, {}), {})
        return {}

    def reward_model(config: reward.RewardConfig) -> dict[str, Any]:
        folder = Path(config.output_dir)
        ran.append((str(folder), [len(Path(x).read_text().splitlines()) for x in rows_of(config)]))
        shutil.copytree(micro.pipeline() / "run" / "reward", folder, dirs_exist_ok=True)
        return {}

    def rows_of(config: reward.RewardConfig) -> tuple[str, ...]:
        return (*config.data.train, *config.data.test)

    fixed = (
        f"config={micro.pipeline() / 'micro.yaml'}",
        *("cells=[incident]", "rounds=2", "updates=1", "pairs=12", "test_pairs=4"),
    )
    with (
        contextlib.chdir(home),
        mock.patch.object(rlhf, "run", run),
        mock.patch.object(ppo, "run", train),
        mock.patch.object(reward, "run", reward_model),
        mock.patch.object(lab_sign_flip_report, "RULES", ()),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        lab_sign_flip.run(lab_sign_flip.CONFIG.load(None, (*fixed, *overrides)))
    return repr((ran, sorted(path.name for path in home.rglob("*.md"))))
