"""Every field of every recipe's config does something: changed, it changes what happens.

One row a field. A field of a recipe is tried in that recipe; a field of a group that recipes share
(`optimizer`, `data`, ...) is tried once, through what reads the group, and each recipe is shown to
pass its groups on. A field without a row fails `test_every_field_has_a_probe`.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import config_probes as probes
import micro
import pytest
import ratings_probes as ratings
import recipe_probes as recipes

from jaxrlhf.config import Config, config_in, differences
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import RECIPES
from jaxrlhf.recipes.rlhf import RLHFConfig


class Probe(NamedTuple):
    """`observe` sees a difference when `change` is added to `base`; the field comes first in it."""

    observe: Callable[..., Any]
    change: tuple[str, ...]
    base: tuple[str, ...] = ()


def p(observe: Callable[..., Any], *change: str, base: tuple[str, ...] = ()) -> Probe:
    return Probe(observe, change, base)


def of(recipe: str, name: str, *change: str, base: tuple[str, ...] = ()) -> Probe:
    return Probe(recipes.part(recipe, name), change, base)


def setting(*change: str, base: tuple[str, ...] = (), seen: str = "update") -> Probe:
    """A hyper-parameter of PPO."""
    full = tuple(f"ppo.{text}" for text in change), tuple(f"ppo.{text}" for text in base)
    return Probe(recipes.part("ppo", seen), *full)


def adapters(*change: str, seen: str = "params") -> Probe:
    """A field of `lora`, of adapters of rank 2 on the tiny pipeline's model."""
    base = ("model_path=run/sft/model", "lora.rank=2")
    return Probe(recipes.part("sft", seen), tuple(f"lora.{text}" for text in change), base)


# Groups: (class, field) -> probe. The change is an override of the class itself.

MODEL, OPTIMIZER, DATA = probes.model, probes.optimizer, probes.data
PROMPTS, SAMPLING, TASK = probes.prompts, probes.sampling, probes.task
SENTIMENT = ("kind=sentiment",)

GROUPS: dict[tuple[str, str], Probe] = {
    ("ModelConfig", "family"): p(MODEL, "family=gpt2"),
    ("ModelConfig", "d_model"): p(MODEL, "d_model=32"),
    ("ModelConfig", "num_layers"): p(MODEL, "num_layers=3"),
    ("ModelConfig", "num_heads"): p(MODEL, "num_heads=1"),
    ("ModelConfig", "num_kv_heads"): p(MODEL, "num_kv_heads=1"),
    ("ModelConfig", "d_ff"): p(MODEL, "d_ff=24"),
    ("ModelConfig", "tied_head"): p(MODEL, "tied_head=true"),
    ("ModelConfig", "max_positions"): p(MODEL, "max_positions=39"),
    ("ModelConfig", "vocab_multiple"): p(MODEL, "vocab_multiple=32"),
    ("OptimizerConfig", "learning_rate"): p(OPTIMIZER, "learning_rate=0.5"),
    ("OptimizerConfig", "lr_scheduler_type"): p(OPTIMIZER, "lr_scheduler_type=cosine"),
    ("OptimizerConfig", "warmup_steps"): p(OPTIMIZER, "warmup_steps=3"),
    ("OptimizerConfig", "weight_decay"): p(OPTIMIZER, "weight_decay=0.1"),
    ("OptimizerConfig", "adam_beta1"): p(OPTIMIZER, "adam_beta1=0.8"),
    ("OptimizerConfig", "adam_beta2"): p(OPTIMIZER, "adam_beta2=0.95"),
    ("OptimizerConfig", "adam_epsilon"): p(OPTIMIZER, "adam_epsilon=1e-5"),
    ("OptimizerConfig", "adam_epsilon_form"): p(OPTIMIZER, "adam_epsilon_form=tensorflow"),
    ("OptimizerConfig", "max_grad_norm"): p(OPTIMIZER, "max_grad_norm=0.3"),
    ("TokenizerConfig", "path"): p(
        probes.tokenizer, f"path={micro.scratch()}/pipeline/run/data/tokenizer"
    ),
    ("TokenizerConfig", "kind"): p(probes.tokenizer, "kind=word"),
    ("TokenizerConfig", "vocab_size"): p(probes.tokenizer, "vocab_size=260"),
    ("DataConfig", "train"): p(DATA, "train=[rows.jsonl, rows.jsonl]", base=("on_bad_row=skip",)),
    ("DataConfig", "test"): p(
        recipes.has_evaluation("sft"), "data.test=[run/data/demonstrations.jsonl]"
    ),
    ("DataConfig", "columns"): p(DATA, "columns={text: other}"),
    ("DataConfig", "limit"): p(DATA, "limit=1"),
    ("DataConfig", "on_bad_row"): p(DATA, "on_bad_row=skip"),
    ("MeshConfig", "data"): p(probes.mesh, "data=4"),
    ("MeshConfig", "tensor"): p(probes.mesh, "tensor=2"),
    ("PromptsConfig", "files"): p(PROMPTS, "files=[more.jsonl]"),
    ("PromptsConfig", "columns"): p(
        PROMPTS, "columns={prompt: other}", base=("files=[more.jsonl]",)
    ),
    ("PromptsConfig", "limit"): p(PROMPTS, "limit=1"),
    ("PromptsConfig", "max_length"): p(PROMPTS, "max_length=2"),
    ("SamplingConfig", "response_length"): p(SAMPLING, "response_length=5"),
    ("SamplingConfig", "min_new_tokens"): p(SAMPLING, "min_new_tokens=2"),
    ("SamplingConfig", "temperature"): p(SAMPLING, "temperature=0.5"),
    ("SamplingConfig", "top_k"): p(SAMPLING, "top_k=3"),
    ("SamplingConfig", "top_p"): p(SAMPLING, "top_p=0.9"),
    ("SamplingConfig", "min_p"): p(SAMPLING, "min_p=0.1"),
    ("SamplingConfig", "stop_at_eos"): p(SAMPLING, "stop_at_eos=false"),
    ("TruncationConfig", "token"): p(probes.truncation, "token=pie"),
    ("TruncationConfig", "after"): p(probes.truncation, "after=1", base=("token=pie",)),
    ("WorldConfig", "name"): p(probes.world, "name=bistre"),
    ("WorldConfig", "seed"): p(probes.world, "seed=1"),
    ("WorldConfig", "settings"): p(probes.world, "settings={repeat_penalty: 0}"),
    ("LabellerConfig", "temperature"): p(probes.labeller, "temperature=3"),
    ("LabellerConfig", "lapse"): p(probes.labeller, "lapse=0.5"),
    ("LabellerConfig", "utility"): p(recipes.labels, "labeller.utility=length"),
    ("LabellerConfig", "soft_labels"): p(recipes.labels, "labeller.soft_labels=true"),
    ("TaskConfig", "kind"): p(TASK, "kind=sentiment"),
    ("SandboxTask", "documents"): p(TASK, "sandbox.documents=5"),
    ("SandboxTask", "demonstrations"): p(TASK, "sandbox.demonstrations=5"),
    ("SandboxTask", "prompts"): p(TASK, "sandbox.prompts=5"),
    ("SandboxTask", "test_prompts"): p(TASK, "sandbox.test_prompts=5"),
    ("SentimentTask", "sst2"): p(TASK, "sentiment.sst2=./elsewhere", base=SENTIMENT),
    ("SentimentTask", "texts"): p(
        TASK, f"sentiment.texts=[{micro.scratch()}/reviews/plain.txt]", base=SENTIMENT
    ),
    ("SentimentTask", "opening_words"): p(TASK, "sentiment.opening_words=5", base=SENTIMENT),
    ("SentimentTask", "shortest_phrase"): p(TASK, "sentiment.shortest_phrase=6", base=SENTIMENT),
    ("SentimentTask", "pair_phrases"): p(TASK, "sentiment.pair_phrases=false", base=SENTIMENT),
    ("SentimentTask", "pairs_per_text"): p(TASK, "sentiment.pairs_per_text=2", base=SENTIMENT),
    ("LoraConfig", "rank"): adapters("rank=3"),
    ("LoraConfig", "alpha"): adapters("alpha=5", seen="frozen"),
    ("LoraConfig", "targets"): adapters("targets=[q_proj]"),
    ("LoraConfig", "use_rslora"): adapters("use_rslora=true", seen="frozen"),
    ("SettingsConfig", "value_model"): setting("value_model=shared"),
    ("SettingsConfig", "num_ppo_epochs"): setting("num_ppo_epochs=3"),
    ("SettingsConfig", "num_mini_batches"): setting("num_mini_batches=2"),
    ("SettingsConfig", "gradient_accumulation_steps"): setting("gradient_accumulation_steps=2"),
    ("SettingsConfig", "gamma"): setting("gamma=0.9"),
    ("SettingsConfig", "lam"): setting("lam=0.8"),
    ("SettingsConfig", "cliprange"): setting("cliprange=0.3"),
    ("SettingsConfig", "cliprange_value"): setting("cliprange_value=null"),
    ("SettingsConfig", "vf_coef"): setting("vf_coef=0.7"),
    ("SettingsConfig", "entropy_coef"): setting("entropy_coef=0.01"),
    ("SettingsConfig", "kl_coef"): setting("kl_coef=0.3", seen="initial"),
    ("SettingsConfig", "kl_target"): setting("kl_target=6.0"),
    ("SettingsConfig", "kl_horizon"): setting("kl_horizon=77", base=("kl_target=6.0",)),
    ("SettingsConfig", "kl_estimator"): setting("kl_estimator=k3"),
    ("SettingsConfig", "kl_in"): setting("kl_in=loss", "kl_estimator=k2"),
    ("SettingsConfig", "missing_eos_penalty"): setting("missing_eos_penalty=-1"),
    ("SettingsConfig", "missing_eos_rule"): setting(
        "missing_eos_rule=subtract", base=("missing_eos_penalty=1",)
    ),
    ("SettingsConfig", "reward_clip"): setting("reward_clip=2"),
    ("SettingsConfig", "normalize_scores"): setting("normalize_scores=true"),
    ("SettingsConfig", "whiten_rewards"): setting("whiten_rewards=true"),
    ("SettingsConfig", "whiten_advantages"): setting("whiten_advantages=false"),
    ("SettingsConfig", "target_kl"): setting("target_kl=0.1"),
    ("OnlineConfig", "k"): p(ratings.rated, "online.k=8", base=ratings.ONLINE),
    ("OnlineConfig", "start"): p(ratings.rated, "online.start=1500", base=ratings.ONLINE),
    ("OnlineConfig", "scale"): p(ratings.rated, "online.scale=100", base=ratings.ONLINE),
    ("OnlineConfig", "orders"): p(ratings.rated, "online.orders=3"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FOLDER = {
    "output_dir": "output_dir=there",
    "save_steps": "save_steps=3",
    "keep_checkpoints": "keep_checkpoints=1",
    "tensorboard": "tensorboard=false",
    "wandb_project": "wandb_project=mine",
}
HELD_OUT = {
    "sft": ("data.test=[run/data/demonstrations.jsonl]",),
    "reward": ("data.test=[run/label/test_preferences.jsonl]",),
    "ppo": ("eval_prompts.files=[run/data/test_prompts.jsonl]",),
}
COMMON = {
    (recipe, field): probe
    for recipe, held_out in HELD_OUT.items()
    for field, probe in {
        **{name: p(probes.folder, change) for name, change in FOLDER.items()},
        "seed": of(recipe, "batch", "seed=1"),
        "batch_size": of(recipe, "batch", "batch_size=4"),
        "max_steps": of(recipe, "steps", "max_steps=9"),
        "num_train_epochs": of(recipe, "steps", "num_train_epochs=3.0", base=("max_steps=null",)),
        "dtype": of(recipe, "update", "dtype=bfloat16"),
        "remat": of(recipe, "update", "remat=true"),
        "eval_steps": p(recipes.has_evaluation(recipe), "eval_steps=2", base=held_out),
    }.items()
}
REWARD_RULE = ("reward_model=null", "reward_function=recipe_probes:by_letters")
SECOND = f"{micro.scratch()}/second.yaml"

RECIPE_FIELDS: dict[tuple[str, str], Probe] = {
    **COMMON,
    ("sft", "gradient_accumulation_steps"): of("sft", "update", "gradient_accumulation_steps=2"),
    ("sft", "model_path"): of("sft", "params", "model_path=run/sft/model"),
    ("sft", "resize_vocabulary"): p(
        recipes.refused("sft"),
        "resize_vocabulary=true",
        base=(f"model_path={recipes.FEWER_WORDS}",),
    ),
    ("sft", "format"): of("sft", "batch", "format=text"),
    ("sft", "packing"): of("sft", "batch", "packing=none"),
    ("sft", "max_length"): of("sft", "batch", "max_length=30"),
    ("sft", "over_long"): of("sft", "batch", "over_long=truncate_left", base=("max_length=16",)),
    ("sft", "chunk_size"): of("sft", "update", "chunk_size=16"),
    ("reward", "gradient_accumulation_steps"): of(
        "reward", "update", "gradient_accumulation_steps=2"
    ),
    ("reward", "model_path"): of("reward", "params", "model_path=run/pretrain/model"),
    ("reward", "max_length"): of("reward", "batch", "max_length=30"),
    ("reward", "over_long"): p(
        recipes.refused("reward"), "over_long=error", base=("max_length=9",)
    ),
    ("reward", "final_norm"): of("reward", "update", "final_norm=false"),
    ("reward", "pooling"): of("reward", "update", "pooling=mean"),
    ("reward", "zero_head"): of(
        "reward", "params", "zero_head=true", base=("normalize_before=false",)
    ),
    ("reward", "center_rewards_coefficient"): of(
        "reward", "update", "center_rewards_coefficient=0.1"
    ),
    ("reward", "lapse"): of("reward", "update", "lapse=0.1"),
    ("reward", "normalize"): of("reward", "params", "normalize=none", base=("normalize=pairs",)),
    ("reward", "normalize_before"): of(
        "reward", "params", "normalize_before=false", base=("normalize=pairs",)
    ),
    ("reward", "reference"): p(
        recipes.asked("reward"), "reference=run/pretrain/model", base=recipes.REFERENCE
    ),
    ("ppo", "policy"): of("ppo", "params", "policy=run/pretrain/model"),
    ("ppo", "reward_model"): p(recipes.scores, f"reward_model={recipes.OTHER_REWARD}"),
    ("ppo", "reward_function"): p(
        recipes.scores, "reward_function=recipe_probes:by_words", base=REWARD_RULE
    ),
    ("ppo", "chunk_size"): of("ppo", "update", "chunk_size=16"),
    ("ppo", "shown_completions"): p(
        recipes.completions, "shown_completions=2", base=HELD_OUT["ppo"]
    ),
    ("sample", "output_dir"): p(
        recipes.asked("sample", "files"), f"output_dir={micro.scratch()}/samples"
    ),
    ("sample", "seed"): p(recipes.asked("sample"), "seed=1"),
    ("sample", "model_path"): p(recipes.asked("sample"), "model_path=run/pretrain/model"),
    ("sample", "dtype"): p(recipes.asked("sample"), "dtype=bfloat16"),
    ("sample", "samples_per_prompt"): p(recipes.asked("sample"), "samples_per_prompt=3"),
    ("sample", "batch_size"): p(recipes.asked("sample"), "batch_size=8"),
    ("simulate-labels", "output_dir"): p(recipes.labels, f"output_dir={micro.scratch()}/labels"),
    ("simulate-labels", "seed"): p(recipes.labels, "seed=1"),
    ("simulate-labels", "samples"): p(recipes.labels, f"samples={recipes.FEWER_SAMPLES}"),
    ("simulate-labels", "test_pairs"): p(recipes.labels, "test_pairs=3"),
    ("rlhf", "output_dir"): p(recipes.pipeline, "output_dir=elsewhere"),
    ("rlhf", "seed"): p(recipes.pipeline, "seed=1"),
    ("rlhf", "dtype"): p(recipes.pipeline, "dtype=bfloat16"),
    ("rlhf", "remat"): p(recipes.pipeline, "remat=true"),
    ("rlhf", "stages"): p(recipes.pipeline, "stages=[sft, ppo]"),
    ("rlhf", "test_preferences"): p(recipes.pipeline, "test_preferences=3"),
    ("seeds", "output_dir"): p(recipes.repetition, "output_dir=elsewhere"),
    ("seeds", "config"): p(recipes.repetition, f"config={SECOND}"),
    ("seeds", "overrides"): p(recipes.repetition, "overrides=[ppo.max_steps=3]"),
    ("seeds", "seeds"): p(recipes.repetition, "seeds=[1, 3]"),
    ("seeds", "results"): p(recipes.repetition, "results=here"),
    ("seeds", "min_gain"): p(recipes.repetition, "min_gain=1.7"),
    ("seeds", "max_kl"): p(recipes.repetition, "max_kl=0.5"),
    ("seeds", "min_legal"): p(recipes.repetition, "min_legal=0.95"),
    ("seeds", "min_passes"): p(recipes.repetition, "min_passes=3"),
    ("elo", "battles"): p(ratings.rated, "battles=fewer.jsonl"),
    ("elo", "output_dir"): p(ratings.rated, "output_dir=elsewhere"),
    ("elo", "columns"): p(
        ratings.rated, "columns={model_a: player}", base=("battles=swapped.jsonl",)
    ),
    ("elo", "outcomes"): p(ratings.rated, "outcomes={better: 1}", base=("battles=words.jsonl",)),
    ("elo", "limit"): p(ratings.rated, "limit=60"),
    ("elo", "on_bad_row"): p(ratings.rated, "on_bad_row=skip", base=("battles=bad.jsonl",)),
    ("elo", "ties"): p(ratings.rated, "ties=davidson"),
    ("elo", "prior"): p(ratings.rated, "prior=1"),
    ("elo", "phantom"): p(ratings.rated, "phantom=1"),
    ("elo", "covariates"): p(ratings.rated, "covariates=[length]"),
    ("elo", "texts"): p(ratings.rated, "texts=[a, prompt]", base=("covariates=[length]",)),
    ("elo", "effects_prior"): p(ratings.rated, "effects_prior=9", base=("covariates=[length]",)),
    ("elo", "anchor"): p(ratings.rated, "anchor=base"),
    ("elo", "anchor_rating"): p(ratings.rated, "anchor_rating=0"),
    ("elo", "interval"): p(ratings.rated, "interval=bootstrap", base=("resamples=100",)),
    ("elo", "resamples"): p(ratings.rated, "resamples=101", base=ratings.BOOTSTRAP),
    ("elo", "cluster"): p(ratings.rated, "cluster=prompt", base=ratings.BOOTSTRAP),
    ("elo", "confidence"): p(ratings.rated, "confidence=0.9"),
    ("elo", "seed"): p(ratings.rated, "seed=1", base=ratings.BOOTSTRAP),
    ("annotators", "labels"): p(ratings.judged, "labels=fewer.jsonl"),
    ("annotators", "output_dir"): p(ratings.judged, "output_dir=elsewhere"),
    ("annotators", "columns"): p(
        ratings.judged, "columns={a: text_a, b: text_b}", base=("labels=swapped.jsonl",)
    ),
    ("annotators", "outcomes"): p(
        ratings.judged, "outcomes={better: 1}", base=("labels=words.jsonl",)
    ),
    ("annotators", "wide"): p(
        ratings.judged, "wide=[one, two, three]", base=("labels=wide.jsonl",)
    ),
    ("annotators", "limit"): p(ratings.judged, "limit=60"),
    ("annotators", "on_bad_row"): p(ratings.judged, "on_bad_row=skip", base=("labels=bad.jsonl",)),
    ("annotators", "model"): p(ratings.judged, "model=majority"),
    ("annotators", "prior"): p(ratings.judged, "prior=5"),
    ("annotators", "seed"): p(ratings.judged, "seed=1"),
    ("rate-answers", "comparisons"): p(ratings.pooled, "comparisons=fewer.jsonl"),
    ("rate-answers", "output_dir"): p(ratings.pooled, "output_dir=elsewhere"),
    ("rate-answers", "columns"): p(
        ratings.pooled, "columns={a: text_a, b: text_b}", base=("comparisons=swapped.jsonl",)
    ),
    ("rate-answers", "outcomes"): p(
        ratings.pooled, "outcomes={better: 1}", base=("comparisons=words.jsonl",)
    ),
    ("rate-answers", "limit"): p(ratings.pooled, "limit=60"),
    ("rate-answers", "on_bad_row"): p(
        ratings.pooled, "on_bad_row=skip", base=("comparisons=bad.jsonl",)
    ),
    ("rate-answers", "prior"): p(ratings.pooled, "prior=3"),
    ("rate-answers", "pairs"): p(ratings.pooled, "pairs=compared"),
    ("rate-answers", "target"): p(ratings.pooled, "target=margin"),
    ("inspect", "path"): p(recipes.inspected, "path=run/reward/model"),
    ("inspect", "recipe"): p(recipes.inspected, "recipe=ppo"),
    ("inspect", "config"): p(recipes.inspected, "config=run/ppo/config.yaml", base=("recipe=ppo",)),
    ("generate", "path"): p(recipes.generated, "path=run/pretrain/model", base=recipes.ONE_PROMPT),
    ("generate", "prompt"): p(recipes.generated, "prompt=the cook", base=recipes.ONE_PROMPT),
    ("generate", "output"): p(recipes.generated, "output=other.jsonl", base=recipes.PROMPT_FILE),
    ("generate", "chat"): p(recipes.generated, "chat=true", base=recipes.ONE_PROMPT),
    ("generate", "system"): p(
        recipes.generated, "system=kind", base=("chat=true", *recipes.ONE_PROMPT)
    ),
    ("generate", "seed"): p(recipes.generated, "seed=1", base=recipes.ONE_PROMPT),
    ("generate", "batch_size"): p(recipes.generated, "batch_size=2", base=recipes.PROMPT_FILE),
    ("generate", "dtype"): p(recipes.generated, "dtype=bfloat16", base=recipes.ONE_PROMPT),
    ("export", "path"): p(recipes.exported, "path=run/pretrain/model"),
    ("export", "output"): p(recipes.exported, f"output={micro.scratch()}/exported"),
    ("export", "step"): p(recipes.exported, "step=6", base=("path=run/sft",)),
    ("export", "dtype"): p(recipes.exported, "dtype=bfloat16"),
    ("export", "max_shard_gb"): p(recipes.exported, "max_shard_gb=0.000004"),
    ("export", "drop_padding"): p(
        recipes.exported, "drop_padding=true", base=(f"path={recipes.PADDED}",)
    ),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    **{(recipe, "mesh"): of(recipe, "mesh", "mesh.data=2") for recipe in HELD_OUT},
    **{
        (recipe, "optimizer"): of(recipe, "update", "optimizer.learning_rate=0.5")
        for recipe in HELD_OUT
    },
    ("sft", "lora"): of("sft", "params", "lora.rank=2", base=("model_path=run/sft/model",)),
    ("reward", "lora"): of("reward", "params", "lora.rank=2"),
    ("ppo", "lora"): of("ppo", "params", "lora.rank=2"),
    ("sft", "model"): of("sft", "params", "model.d_ff=24"),
    ("sft", "tokenizer"): of("sft", "batch", "tokenizer.kind=word", base=("tokenizer.path=null",)),
    ("sft", "data"): of("sft", "batch", "data.limit=40"),
    ("reward", "data"): of("reward", "batch", "data.limit=12"),
    ("reward", "prompts"): p(recipes.asked("reward"), "prompts.limit=5", base=recipes.REFERENCE),
    ("reward", "sampling"): p(
        recipes.asked("reward"), "sampling.temperature=0.5", base=recipes.REFERENCE
    ),
    ("ppo", "prompts"): of("ppo", "batch", "prompts.limit=9"),
    ("ppo", "eval_prompts"): p(recipes.completions, "eval_prompts.limit=3", base=HELD_OUT["ppo"]),
    ("ppo", "sampling"): of("ppo", "update", "sampling.temperature=0.5"),
    ("ppo", "truncation"): p(recipes.truncation_of_ppo, "truncation.token=soup"),
    ("ppo", "ppo"): of("ppo", "update", "ppo.gamma=0.9"),
    ("sample", "mesh"): p(recipes.asked("sample"), "mesh.data=2"),
    ("sample", "prompts"): p(recipes.asked("sample"), "prompts.limit=5"),
    ("sample", "sampling"): p(recipes.asked("sample"), "sampling.temperature=0.5"),
    ("simulate-labels", "world"): p(recipes.labels, "world.settings={repeat_penalty: 9}"),
    ("simulate-labels", "labeller"): p(recipes.labels, "labeller.lapse=1"),
    ("elo", "online"): p(ratings.rated, "online.orders=2"),
    ("inspect", "mesh"): p(recipes.inspected, "mesh.data=2"),
    ("generate", "mesh"): p(recipes.generated, "mesh.data=2", base=recipes.PROMPT_FILE),
    ("generate", "prompts"): p(recipes.generated, "prompts.limit=5", base=recipes.PROMPT_FILE),
    ("generate", "sampling"): p(
        recipes.generated, "sampling.temperature=0.5", base=recipes.ONE_PROMPT
    ),
    ("rlhf", "mesh"): p(recipes.pipeline, "mesh.data=2"),
    ("rlhf", "task"): p(recipes.pipeline, "task.sandbox.world.seed=3"),
}
STAGES = {
    "pretrain": "sft",
    "sft": "sft",
    "sample": "sample",
    "label": "simulate-labels",
    "reward": "reward",
    "ppo": "ppo",
}


# The fields there are.


def config_of(recipe: str) -> type[Config]:
    return importlib.import_module(RECIPES[recipe].module).CONFIG


def groups(cls: type[Config]) -> dict[str, type[Config]]:
    found = {name: config_in(field.annotation) for name, field in cls.model_fields.items()}
    return {name: inner for name, inner in found.items() if inner is not None}


def plain(cls: type[Config]) -> list[str]:
    return [name for name in cls.model_fields if name not in groups(cls)]


def shared(cls: type[Config]) -> Iterator[type[Config]]:
    """Every group class below `cls`, `cls` included."""
    yield cls
    for inner in groups(cls).values():
        yield from shared(inner)


def test_every_field_has_a_probe():
    own, below = set(), set()
    for recipe in RECIPES:
        cls = config_of(recipe)
        own |= {(recipe, name) for name in plain(cls)}
        for name, inner in groups(cls).items():
            if not (recipe == "rlhf" and name in STAGES):
                below |= {(c.__name__, field) for c in shared(inner) for field in plain(c)}
    assert own == set(RECIPE_FIELDS)
    assert below == set(GROUPS)


def test_every_group_of_a_recipe_is_shown_to_be_passed_on():
    wanted = {(recipe, name) for recipe in RECIPES for name in groups(config_of(recipe))}
    assert wanted == set(PASSED_ON) | {("rlhf", stage) for stage in STAGES}


@pytest.fixture(scope="module")
def second_pipeline():
    """What some probes need beside the tiny pipeline."""
    text = (micro.pipeline() / "micro.yaml").read_text()
    with open(SECOND, "w") as file:
        file.write(text.replace("max_steps: 8", "max_steps: 7"))
    recipes.make_other_reward()
    recipes.make_fewer_samples()
    recipes.make_other_vocabularies()


EVERY = {f"{cls}.{field}": probe for (cls, field), probe in GROUPS.items()}
EVERY |= {f"{recipe}: {field}": probe for (recipe, field), probe in RECIPE_FIELDS.items()}
EVERY |= {f"{recipe}: {group} arrives": probe for (recipe, group), probe in PASSED_ON.items()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("second_pipeline")
def test_the_field_has_an_effect(name):
    probe = EVERY[name]
    assert seen(probe.observe, *probe.base, *probe.change) != seen(probe.observe, *probe.base)


@functools.cache
def seen(observe: Callable[..., Any], *overrides: str) -> Any:
    return observe(*overrides)


@pytest.mark.parametrize(
    "observe",
    [probes.optimizer, probes.model, probes.task],
    ids=lambda probe: probe.__name__,
)
def test_without_a_change_a_probe_sees_no_difference(observe):
    assert observe() == observe()


def test_the_program_of_an_update_is_the_same_text_each_time():
    for recipe in HELD_OUT:
        first = recipes.training_stage(recipe)
        again = recipes.training_stage.__wrapped__(recipe)
        assert first.update == again.update and first.batch == again.batch


@pytest.mark.parametrize("recipe", HELD_OUT)
def test_a_recipe_trains_in_the_folder_of_its_own_config(recipe):
    """So what is shown for `stages.train` (checkpoints, logs, seed) holds for the recipe."""
    stage = recipes.training_stage(recipe, "seed=4", "save_steps=7")
    assert type(stage.config) is config_of(recipe)
    assert (stage.config.seed, stage.config.save_steps) == (4, 7)


# The pipeline passes every field of every stage on, or refuses it.

BELONGS_TO_THE_PIPELINE = ("output_dir", "seed", "dtype", "remat", "mesh.data", "mesh.tensor")
WORLD = ("label.world.name", "label.world.seed", "label.world.settings")
NOT_FOR_PPO = ("min_new_tokens", "top_k", "top_p", "min_p")


def stage_fields() -> Iterator[tuple[str, str]]:
    """Path below the pipeline's config, and an override of it that has another value."""
    for stage, recipe in STAGES.items():
        cls = config_of(recipe)
        for field in plain(cls):
            yield f"{stage}.{field}", RECIPE_FIELDS[recipe, field].change[0]
        for group, inner in groups(cls).items():
            assert not groups(inner), "deeper groups need a deeper walk"
            for field in plain(inner):
                yield f"{stage}.{group}.{field}", GROUPS[inner.__name__, field].change[0]


def test_the_pipeline_passes_every_field_of_a_stage_on_or_refuses_it():
    base = ("sft={}", "ppo.batch_size=8", "sample.prompts.files=[a.jsonl]")
    before, refused = planned(*base), []
    for path, change in stage_fields():
        value = change.partition("=")[2]
        try:
            after = planned(*base, f"{path}={value}", *companions(path))
        except ConfigError:
            refused.append(path)
            continue
        changed = [found.path for found in differences(before, after)]
        assert path in changed, f"{path} = {value} does not arrive: {changed}"
    wanted = [
        path
        for path, _ in stage_fields()
        if path.partition(".")[2] in BELONGS_TO_THE_PIPELINE
        or path in WORLD
        or path in [f"ppo.sampling.{name}" for name in NOT_FOR_PPO]
    ]
    assert refused == wanted


def companions(path: str) -> tuple[str, ...]:
    """What a value needs beside it to be valid."""
    needed = {
        "ppo.ppo.kl_in": ("ppo.ppo.kl_estimator=k2",),
        "reward.zero_head": ("reward.normalize_before=false",),
    }
    return needed.get(path, ())


def planned(*overrides: str) -> dict[str, Any]:
    """The config of every stage of a pipeline of files."""
    return recipes.plan(RLHFConfig.load(None, overrides))
