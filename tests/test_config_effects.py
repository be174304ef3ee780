"""Every field of every recipe's config does something: changed, it changes what happens.

One row a field. A field of a recipe is tried in that recipe; a field of a group that recipes share
(`optimizer`, `data`, ...) is tried once, through what reads the group, and each recipe is shown to
pass its groups on. A field without a row fails `test_every_field_has_a_probe`.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cai_plans
import cai_probes as cai
import cai_tiny
import config_probes as probes
import guard_probes as guards
import label_probes as labels
import micro
import pytest
import ratings_probes as ratings
import recipe_probes as recipes
import w2s_stages

from jaxrlhf.config import Config, config_in, config_in_items, differences
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import RECIPES
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.w2s import OWN, W2SConfig


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


def loss(*change: str, base: tuple[str, ...] = ()) -> Probe:
    """A hyper-parameter of a weak-to-strong loss."""
    full = tuple(f"loss.{text}" for text in change), tuple(f"loss.{text}" for text in base)
    return Probe(recipes.part("classify", "update"), *full)


def w2s(*change: str, base: tuple[str, ...] = ()) -> Probe:
    return Probe(w2s_stages.observed, change, base)


# Groups: (class, field) -> probe. The change is an override of the class itself.

HELD_OUT_PROMPTS = ("eval_prompts.files=[run/data/test_prompts.jsonl]",)
MODEL, OPTIMIZER, DATA = probes.model, probes.optimizer, probes.data
PROMPTS, SAMPLING, TASK = probes.prompts, probes.sampling, probes.task
SENTIMENT = ("kind=sentiment",)
FILES = ("task.kind=files",)
THEIRS = "supervisors={words: {kind: column, column: theirs}}"
FLIPS = "supervisors={words: {kind: flips, of: [one]}, one: {}, two: {penalty: 9}}"
TEACHER = "supervisors={words: {kind: model, size: student}, first: {}}"
CHAIN = "supervisors={words: {kind: model, size: student, of: [first]}, first: {}}"
THREE = "losses={naive: {loss: cross_entropy}, mended: {}, product: {loss: product}}"
EVERY_LOSS = "grids={main: {losses: [naive, mended, product]}}"
JUDGED = (THREE, EVERY_LOSS, "rule={min_passes: 1, min_gain: -9}")

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
    ("CAITaskConfig", "kind"): p(cai_plans.task, "kind=files"),
    **{
        ("HelpdeskTask", name): p(cai_plans.task, f"helpdesk.{name}={count}")
        for name, count in {
            "documents": 5,
            "demonstrations": 5,
            "lessons": 5,
            "red_prompts": 5,
            "helpful_prompts": 5,
            "test_prompts": 25,
        }.items()
    },
    **{
        ("FilesTask", name): p(cai_plans.task, f"files.{name}=[c]", base=cai_plans.FILES)
        for name in (
            *("red_prompts", "helpful_prompts", "test_prompts"),
            *("demonstrations", "helpful_pairs", "harm_pairs"),
        )
    },
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
    ("PairsConfig", "files"): p(cai.pairs, "files=[renamed.jsonl]"),
    ("PairsConfig", "columns"): p(
        cai.pairs, "columns={prompt: question}", base=("files=[renamed.jsonl]",)
    ),
    ("PairsConfig", "limit"): p(cai.pairs, "limit=5"),
    ("PairsConfig", "group_by"): p(cai.pairs, "group_by=kind"),
    ("ServerConfig", "url"): p(cai.server, "url=http://localhost:2/v1"),
    ("ServerConfig", "model"): p(cai.server, "model=other"),
    ("ServerConfig", "api"): p(cai.served, "api=chat"),
    ("ServerConfig", "key_variable"): p(cai.server, "key_variable=KEY"),
    ("ServerConfig", "cache"): p(cai.server, "cache=there"),
    ("ServerConfig", "concurrency"): p(cai.server, "concurrency=2"),
    ("ServerConfig", "timeout"): p(cai.server, "timeout=2"),
    ("ServerConfig", "retries"): p(cai.server, "retries=2"),
    ("ServerConfig", "backoff"): p(cai.server, "backoff=2"),
    ("ServerConfig", "price_read"): p(cai.server, "price_read=3"),
    ("ServerConfig", "price_written"): p(cai.server, "price_written=3"),
    ("ServerConfig", "seconds_per_request"): p(cai.server, "seconds_per_request=3"),
    ("ServerConfig", "max_cost"): p(cai.server, "max_cost=0.0001"),
    ("ServerConfig", "estimate_only"): p(cai.served, "estimate_only=true"),
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
    ("LossConfig", "loss"): loss("loss=product"),
    ("LossConfig", "max_weight"): loss("max_weight=0.75"),
    ("LossConfig", "ramp_share"): loss("ramp_share=0.2"),
    ("LossConfig", "threshold"): loss("threshold=rank"),
    ("LossConfig", "positive_share"): loss("positive_share=half"),
    ("LossConfig", "balance_labels"): loss("balance_labels=true"),
    ("LossConfig", "recent_predictions"): loss("recent_predictions=16", base=("loss=rolling",)),
    ("LossConfig", "window_radius"): loss("window_radius=0.15", base=("loss=window",)),
    ("LossConfig", "label_power"): loss("label_power=0.5", base=("loss=product",)),
    ("LossConfig", "own_power"): loss("own_power=0.5", base=("loss=product",)),
    ("W2STaskConfig", "kind"): w2s("task.kind=files"),
    ("CaravanTask", "documents"): w2s("task.sandbox.documents=5"),
    ("CaravanTask", "first"): w2s("task.sandbox.first=41"),
    ("CaravanTask", "second"): w2s("task.sandbox.second=21"),
    ("CaravanTask", "test"): w2s("task.sandbox.test=41"),
    ("FilesTask", "reads"): w2s("task.files.reads=pairs", base=FILES),
    ("FilesTask", "train"): w2s("task.files.train=[nowhere.jsonl]", base=FILES),
    ("FilesTask", "test"): w2s("task.files.test=[nowhere.jsonl]", base=FILES),
    ("FilesTask", "columns"): w2s("task.files.columns={label: other}", base=FILES),
    ("FilesTask", "classes"): w2s(
        "task.files.classes=3", base=(*FILES, "losses.mended.threshold=argmax")
    ),
    ("FilesTask", "first_share"): w2s("task.files.first_share=0.25", base=FILES),
    ("FilesTask", "limit"): w2s("task.files.limit=20", base=FILES),
    ("FilesTask", "corpus"): w2s("task.files.corpus=[plain.txt]", base=FILES),
    ("SizeConfig", "path"): w2s("sizes={student: {path: theirs}}"),
    ("SizeConfig", "max_steps"): w2s("sizes={student: {max_steps: 7}}"),
    ("SupervisorConfig", "kind"): w2s(FLIPS.replace("flips", "rule"), base=(FLIPS,)),
    ("SupervisorConfig", "size"): w2s(TEACHER.replace("student", "other"), base=(TEACHER,)),
    ("SupervisorConfig", "of"): w2s(FLIPS.replace("[one]", "[two]"), base=(FLIPS,)),
    ("SupervisorConfig", "loss"): w2s(CHAIN.replace("of:", "loss: mended, of:"), base=(CHAIN,)),
    ("SupervisorConfig", "column"): w2s(THEIRS.replace("theirs", "other"), base=(*FILES, THEIRS)),
    ("SupervisorConfig", "draw"): w2s("supervisors={words: {draw: 1}}"),
    ("SupervisorConfig", "penalty"): w2s("supervisors={words: {penalty: 1}}"),
    ("GridConfig", "seeds"): w2s("grids={main: {seeds: [1]}}"),
    ("GridConfig", "supervisors"): w2s(
        "grids={main: {supervisors: [first]}}", base=("supervisors={words: {}, first: {}}",)
    ),
    ("GridConfig", "students"): w2s("grids={main: {students: [other]}}"),
    ("GridConfig", "losses"): w2s("grids={main: {losses: [mended]}}"),
    ("GridConfig", "tuning"): w2s("grids={main: {tuning: [probe]}}"),
    ("GridConfig", "learning_rates"): w2s("grids={main: {learning_rates: [0.5]}}"),
    ("GridConfig", "start"): w2s("grids={main: {start: [adapted]}}", base=("adapt={}",)),
    ("RuleConfig", "grid"): w2s("rule.grid=more", base=("grids={main: {}, more: {}}", "rule={}")),
    ("RuleConfig", "loss"): w2s("rule.loss=product", base=JUDGED),
    ("RuleConfig", "baseline"): w2s("rule.baseline=product", base=JUDGED),
    ("RuleConfig", "min_gain"): w2s("rule.min_gain=0.9", base=JUDGED),
    ("RuleConfig", "min_passes"): w2s("rule.min_passes=2", base=JUDGED),
    ("OnlineConfig", "k"): p(ratings.rated, "online.k=8", base=ratings.ONLINE),
    ("OnlineConfig", "start"): p(ratings.rated, "online.start=1500", base=ratings.ONLINE),
    ("OnlineConfig", "scale"): p(ratings.rated, "online.scale=100", base=ratings.ONLINE),
    ("OnlineConfig", "orders"): p(ratings.rated, "online.orders=3"),
}

# Groups of guards. A limit is tried on a log in which the guard stops the run (`guard_cases.py`).

DRIFTS = {
    "Fluency": "fluency",
    "Entropy": "entropy",
    "Repetition": "repetition",
    "Length": "length",
    "EosRate": "eos_rate",
}
GUARDS: dict[tuple[str, str], Probe] = {
    ("GuardsConfig", "dry_run"): p(guards.case("kl_budget"), "dry_run=true"),
    ("GuardsConfig", "warn"): p(guards.case("kl_budget"), "warn=[kl_budget]"),
    ("GuardsConfig", "off"): p(guards.case("kl_budget"), "off=[kl_budget]"),
    ("GuardsConfig", "labeller"): p(
        recipes.guards_of_ppo, "guards.labeller=recipe_probes:first_is_better"
    ),
    ("Canary", "files"): p(
        recipes.first_figures, "guards.canary.files=[run/label/preferences.jsonl]"
    ),
    ("Canary", "columns"): p(
        recipes.first_figures,
        "guards.canary.columns={chosen: rejected, rejected: chosen}",
        base=recipes.CANARIES,
    ),
    ("Canary", "pairs"): p(recipes.first_figures, "guards.canary.pairs=3", base=recipes.CANARIES),
    ("Canary", "min_right"): p(guards.case("canary"), "canary.min_right=0.3"),
    ("Readings", "min_correlation"): p(guards.case("readings"), "readings.min_correlation=0.9"),
    ("Direction", "updates"): p(guards.figures, "direction.updates=1"),
    ("Direction", "standard_errors"): p(guards.case("direction"), "direction.standard_errors=99"),
    ("KLBudget", "max_kl"): p(guards.case("kl_budget"), "kl_budget.max_kl=60"),
    ("Fluency", "max_drop"): p(guards.case("fluency"), "fluency.max_drop=3"),
    ("Entropy", "min_share"): p(guards.case("entropy"), "entropy.min_share=0.01"),
    ("Repetition", "max_rise"): p(guards.case("repetition"), "repetition.max_rise=0.9"),
    ("Length", "max_factor"): p(guards.case("length"), "length.max_factor=9"),
    ("EosRate", "min_share"): p(guards.case("eos_rate"), "eos_rate.min_share=0.1"),
    **{(cls, "updates"): p(guards.case(x), f"{x}.updates=5") for cls, x in DRIFTS.items()},
    ("Andon", "pairs"): p(guards.figures, "andon.pairs=3"),
    ("Andon", "candidates"): p(guards.figures, "andon.candidates=4"),
    ("Andon", "limit"): p(guards.case("andon"), "andon.limit=9"),
    ("WinRate", "pairs"): p(guards.wins, "win_rate.pairs=3"),
    ("WinRate", "limit"): p(guards.case("win_rate"), "win_rate.limit=9"),
    ("Trend", "standard_errors"): p(guards.case("trend"), "trend.standard_errors=9"),
    ("Trend", "evaluations"): p(guards.case("trend"), "trend.evaluations=5"),
    ("Disagreement", "reward_models"): p(
        recipes.guards_of_ppo,
        f"guards.disagreement.reward_models=[{recipes.OTHER_REWARD}]",
        base=HELD_OUT_PROMPTS,
    ),
    ("Disagreement", "max_ratio"): p(guards.case("disagreement"), "disagreement.max_ratio=9"),
    ("StopFile", "name"): p(guards.cord, "stop_file.name=HALT"),
}
GROUPS |= GUARDS

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
    "classify": (f"data.test=[{recipes.LABELLED}]",),
    "ppo": HELD_OUT_PROMPTS,
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
REVISE, LABEL, JUDGE = (cai.outcome(recipe) for recipe in cai_tiny.BASE)
ASKS = {
    "output_dir": f"output_dir={micro.scratch()}/elsewhere",
    "seed": "seed=1",
    "model_path": "model_path=other",
    "dtype": "dtype=bfloat16",
    "constitution": "constitution=fewer.yaml",
    "few_shot": "few_shot=0",
    "batch_size": "batch_size=8",
}
CHOOSES = {
    **ASKS,
    "both_orders": "both_orders=false",
    "questions_per_pair": "questions_per_pair=2",
    "comparisons": "comparisons=2",
    "think": "think=true",
}
CAI = {
    (recipe, field): p(cai.outcome(recipe), change)
    for recipe in cai_tiny.BASE
    for field, change in (ASKS if recipe == "cai critique-revise" else CHOOSES).items()
}
REWARD_RULE = ("reward_model=null", "reward_function=recipe_probes:by_letters")
SECOND, FEWER_TESTS = (f"{micro.scratch()}/{name}.yaml" for name in ("second", "fewer_tests"))

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
    ("classify", "gradient_accumulation_steps"): of(
        "classify", "update", "gradient_accumulation_steps=2"
    ),
    ("classify", "model_path"): of("classify", "params", "model_path=run/pretrain/model"),
    ("classify", "reads"): p(recipes.refused("classify"), "reads=pairs"),
    ("classify", "test_columns"): p(
        recipes.refused("classify"), "test_columns={label: other}", base=HELD_OUT["classify"]
    ),
    ("classify", "classes"): of("classify", "params", "classes=3", base=("loss.loss=product",)),
    ("classify", "max_length"): of("classify", "batch", "max_length=30"),
    ("classify", "over_long"): p(
        recipes.refused("classify"), "over_long=error", base=("max_length=4",)
    ),
    ("classify", "tuning"): of("classify", "params", "tuning=probe"),
    ("classify", "class_words"): of("classify", "params", "class_words=[pie, soup]"),
    ("classify", "pooling"): of("classify", "update", "pooling=mean"),
    ("classify", "validation_rows"): of("classify", "batch", "validation_rows=8"),
    ("classify", "predict"): p(recipes.refused("classify"), "predict=[nowhere.jsonl]"),
    ("w2s", "output_dir"): w2s("output_dir=elsewhere"),
    ("w2s", "results"): w2s("results=elsewhere"),
    ("w2s", "ceiling_half"): w2s("ceiling_half=first"),
    **CAI,
    ("cai critique-revise", "keep_unfinished"): p(REVISE, "keep_unfinished=false"),
    ("cai critique-revise", "rounds"): p(REVISE, "rounds=1"),
    ("cai critique-revise", "direct"): p(REVISE, "direct=true"),
    ("cai critique-revise", "principles"): p(REVISE, "principles=2"),
    ("cai critique-revise", "revisions"): p(REVISE, "revisions=last"),
    ("cai critique-revise", "helpful"): p(REVISE, *cai.HELPFUL),
    ("cai critique-revise", "helpful_ratio"): p(REVISE, "helpful_ratio=0.25", base=cai.HELPFUL),
    ("cai label", "keep_unfinished"): p(LABEL, "keep_unfinished=false", base=("think=true",)),
    ("cai label", "samples"): p(LABEL, "samples=some_samples.jsonl"),
    ("cai label", "hard"): p(LABEL, "hard=true"),
    ("cai label", "clamp"): p(LABEL, "clamp=[0.4, 0.6]"),
    ("cai label", "ai_label_weight"): p(LABEL, "ai_label_weight=0.5"),
    ("cai label", "human"): p(LABEL, *cai.HUMAN),
    ("cai label", "human_ratio"): p(LABEL, "human_ratio=0.25", base=cai.HUMAN),
    ("cai label", "test_pairs"): p(LABEL, "test_pairs=3"),
    ("cai judge", "keep_unfinished"): p(JUDGE, "keep_unfinished=false", base=("think=true",)),
    ("sample", "output_dir"): p(
        recipes.asked("sample", "files"), f"output_dir={micro.scratch()}/samples"
    ),
    ("sample", "seed"): p(recipes.asked("sample"), "seed=1"),
    ("sample", "model_path"): p(recipes.asked("sample"), "model_path=run/pretrain/model"),
    ("sample", "models"): p(
        recipes.asked("sample"),
        "models=[run/sft/model, run/pretrain/model]",
        base=("model_path=null", "models=[run/sft/model]"),
    ),
    ("sample", "deduplicate"): p(recipes.asked("sample", "rows"), "deduplicate=true"),
    ("sample", "dtype"): p(recipes.asked("sample"), "dtype=bfloat16"),
    ("sample", "samples_per_prompt"): p(recipes.asked("sample"), "samples_per_prompt=3"),
    ("sample", "batch_size"): p(recipes.asked("sample"), "batch_size=8"),
    ("simulate-labels", "output_dir"): p(recipes.labels, f"output_dir={micro.scratch()}/labels"),
    ("simulate-labels", "seed"): p(recipes.labels, "seed=1"),
    ("simulate-labels", "samples"): p(recipes.labels, f"samples={recipes.FEWER_SAMPLES}"),
    ("simulate-labels", "test_pairs"): p(recipes.labels, "test_pairs=3"),
    ("label", "store"): p(labels.labelled, f"store={labels.new_folder()}/other.sqlite"),
    ("label", "pairs"): p(labels.labelled, "pairs=[preferences.jsonl, pairs.jsonl]"),
    ("label", "columns"): p(
        labels.labelled, "columns={a: prompt}", base=("pairs=[other.jsonl]", "columns={a: first}")
    ),
    ("label", "guideline"): p(labels.labelled, "guideline=guideline.md"),
    ("label", "title"): p(labels.labelled, "title=Which one?"),
    ("label", "next"): p(labels.labelled, "next=priority"),
    ("label", "overlap"): p(labels.labelled, "overlap=2"),
    ("label", "patience"): p(labels.labelled, "patience=1e-9"),
    ("label", "seed"): p(labels.labelled, "seed=1"),
    ("label", "host"): p(labels.labelled, "host=localhost"),
    ("label", "port"): p(labels.labelled, "port=1234"),
    ("label", "token"): p(labels.labelled, "token=a-token-of-enough-letters"),
    ("convert-labels", "input"): p(labels.converted, "input=[preferences.jsonl]"),
    ("convert-labels", "columns"): p(
        labels.converted,
        "columns={a: prompt}",
        base=("input=[other.jsonl]", "columns={a: first}", "format=rows"),
    ),
    ("convert-labels", "annotator"): p(
        labels.converted, "annotator=bob", base=("input=[preferences.jsonl]",)
    ),
    ("convert-labels", "output"): p(labels.converted, f"output={labels.new_folder()}/other.jsonl"),
    ("convert-labels", "format"): p(labels.converted, "format=argilla"),
    ("convert-labels", "labels"): p(labels.converted, "labels=[.5,.6,.7,.8]"),
    ("convert-labels", "margins"): p(labels.converted, "margins=[0,1,2,3]"),
    ("convert-labels", "ties"): p(labels.converted, "ties=half"),
    ("rlhf", "output_dir"): p(recipes.pipeline, "output_dir=elsewhere"),
    ("rlhf", "seed"): p(recipes.pipeline, "seed=1"),
    ("rlhf", "dtype"): p(recipes.pipeline, "dtype=bfloat16"),
    ("rlhf", "remat"): p(recipes.pipeline, "remat=true"),
    ("rlhf", "stages"): p(recipes.pipeline, "stages=[sft, ppo]"),
    ("rlhf", "test_preferences"): p(recipes.pipeline, "test_preferences=3"),
    ("cai", "output_dir"): p(cai_plans.pipeline, "output_dir=elsewhere"),
    ("cai", "seed"): p(cai_plans.pipeline, "seed=1"),
    ("cai", "dtype"): p(cai_plans.pipeline, "dtype=bfloat16"),
    ("cai", "remat"): p(cai_plans.pipeline, "remat=true"),
    ("cai", "stages"): p(cai_plans.pipeline, "stages=[sample, label]"),
    ("cai", "constitution"): p(cai_plans.pipeline, "constitution=other.yaml"),
    ("cai", "model_path"): p(
        cai_plans.pipeline, "model_path=other", base=("pretrain=null", "model_path=first")
    ),
    ("cai", "sl_rounds"): p(cai_plans.pipeline, "sl_rounds=1"),
    ("cai", "sl_revisions"): p(cai_plans.pipeline, "sl_revisions=[last]"),
    ("cai seeds", "output_dir"): p(cai_plans.repetition, "output_dir=elsewhere"),
    ("cai seeds", "config"): p(cai_plans.repetition, f"config={cai_plans.SECOND}"),
    ("cai seeds", "overrides"): p(cai_plans.repetition, "overrides=[ppo.max_steps=3]"),
    ("cai seeds", "seeds"): p(cai_plans.repetition, "seeds=[1, 3]"),
    ("cai seeds", "jobs"): p(cai_plans.repetition, "jobs=3"),
    ("cai seeds", "results"): p(cai_plans.repetition, "results=here"),
    ("cai seeds", "min_passes"): p(cai_plans.repetition, "min_passes=1"),
    ("seeds", "output_dir"): p(recipes.repetition, "output_dir=elsewhere"),
    ("seeds", "config"): p(recipes.repetition, f"config={SECOND}"),
    ("seeds", "overrides"): p(recipes.repetition, "overrides=[ppo.max_steps=3]"),
    ("seeds", "seeds"): p(recipes.repetition, "seeds=[1, 3]"),
    ("seeds", "results"): p(recipes.repetition, "results=here"),
    ("seeds", "min_gain"): p(recipes.repetition, "min_gain=1.7"),
    ("seeds", "max_kl"): p(recipes.repetition, "max_kl=0.5"),
    ("seeds", "min_legal"): p(recipes.repetition, "min_legal=0.95"),
    ("seeds", "min_passes"): p(recipes.repetition, "min_passes=3"),
    ("lab sign-flip", "output_dir"): p(recipes.sign_flip, "output_dir=elsewhere"),
    ("lab sign-flip", "config"): p(
        recipes.sign_flip, f"config={FEWER_TESTS}", base=("overrides=[]",)
    ),
    ("lab sign-flip", "overrides"): p(recipes.sign_flip, "overrides=[test_preferences=5]"),
    ("lab sign-flip", "seeds"): p(recipes.sign_flip, "seeds=[3]"),
    ("lab sign-flip", "cells"): p(recipes.sign_flip, "cells=[inverted]"),
    ("lab sign-flip", "rounds"): p(recipes.sign_flip, "rounds=3"),
    ("lab sign-flip", "updates"): p(recipes.sign_flip, "updates=2"),
    ("lab sign-flip", "pairs"): p(recipes.sign_flip, "pairs=16"),
    ("lab sign-flip", "test_pairs"): p(recipes.sign_flip, "test_pairs=5"),
    ("lab sign-flip", "results"): p(recipes.sign_flip, "results=here"),
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
    ("classify", "data"): of("classify", "batch", "data.limit=12"),
    ("classify", "loss"): loss("max_weight=0.75"),
    ("w2s", "task"): w2s("task.sandbox.world.seed=3"),
    ("w2s", "sizes"): w2s("sizes.student.model.d_model=32"),
    ("w2s", "supervisors"): w2s("supervisors.words.draw=2"),
    ("w2s", "losses"): w2s("losses.mended.max_weight=0.75"),
    ("w2s", "grids"): w2s("grids.main.seeds=[1]"),
    ("w2s", "rule"): w2s("rule={}"),
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
    **{(recipe, "mesh"): p(cai.outcome(recipe), "mesh.data=2") for recipe in cai_tiny.BASE},
    ("cai critique-revise", "prompts"): p(REVISE, "prompts.limit=5"),
    ("cai critique-revise", "sampling"): p(REVISE, "sampling.temperature=0.5"),
    ("cai label", "sampling"): p(LABEL, "sampling.temperature=0.5", base=("think=true",)),
    ("cai label", "server"): p(LABEL, "server.model=other", base=cai.SERVED),
    ("cai judge", "sampling"): p(JUDGE, "sampling.temperature=0.5", base=("think=true",)),
    ("cai judge", "server"): p(JUDGE, "server.model=other", base=cai.SERVED),
    ("cai judge", "pairs"): p(JUDGE, "pairs.limit=5"),
    ("ppo", "guards"): p(recipes.guards_of_ppo, "guards.kl_budget.max_kl=60"),
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
    ("cai", "mesh"): p(cai_plans.pipeline, "mesh.data=2"),
    ("cai", "task"): p(cai_plans.pipeline, "task.helpdesk.world.seed=3"),
    ("cai", "chains"): p(cai_plans.pipeline, "chains=[{name: other}]"),
    ("cai", "judges"): p(cai_plans.pipeline, "judges=[{name: other}]"),
    ("cai", "arms"): p(cai_plans.pipeline, "arms=[{name: other}]"),
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
W2S_STAGES = {"pretrain": "sft", "adapt": "sft", "finetune": "classify"}
# The groups of a pipeline that are configs of stages, or variants of them; for those of `cai` see
# recipes/test_cai.py.
PIPELINES = {
    "rlhf": tuple(STAGES),
    "w2s": tuple(W2S_STAGES),
    "cai": (*cai_plans.STAGES, "chains", "judges", "arms"),
}


# The fields there are.


def config_of(recipe: str) -> type[Config]:
    return importlib.import_module(RECIPES[recipe].module).CONFIG


def groups(cls: type[Config]) -> dict[str, type[Config]]:
    found = {
        name: config_in(field.annotation) or config_in_items(field.annotation)
        for name, field in cls.model_fields.items()
    }
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
            if name not in PIPELINES.get(recipe, ()):
                below |= {(c.__name__, field) for c in shared(inner) for field in plain(c)}
    assert own == set(RECIPE_FIELDS)
    assert below == set(GROUPS)


def test_every_group_of_a_recipe_is_shown_to_be_passed_on():
    wanted = {(recipe, name) for recipe in RECIPES for name in groups(config_of(recipe))}
    stages = {(recipe, stage) for recipe, found in PIPELINES.items() for stage in found}
    assert wanted == set(PASSED_ON) | stages


@pytest.fixture(scope="module")
def second_pipeline():
    """What some probes need beside the tiny pipeline."""
    text = (micro.pipeline() / "micro.yaml").read_text()
    with open(SECOND, "w") as file:
        file.write(text.replace("max_steps: 8", "max_steps: 7"))
    with open(FEWER_TESTS, "w") as file:
        file.write(text.replace("test_preferences: 8", "test_preferences: 7"))
    cai_plans.make_second()
    recipes.make_other_reward()
    recipes.make_fewer_samples()
    recipes.make_other_vocabularies()
    recipes.make_labelled()


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


@pytest.mark.usefixtures("second_pipeline")
def test_the_program_of_an_update_is_the_same_text_each_time():
    for recipe in HELD_OUT:
        first = recipes.training_stage(recipe)
        again = recipes.training_stage.__wrapped__(recipe)
        assert first.update == again.update and first.batch == again.batch


@pytest.mark.parametrize("recipe", HELD_OUT)
@pytest.mark.usefixtures("second_pipeline")
def test_a_recipe_trains_in_the_folder_of_its_own_config(recipe):
    """So what is shown for `stages.train` (checkpoints, logs, seed) holds for the recipe."""
    stage = recipes.training_stage(recipe, "seed=4", "save_steps=7")
    assert type(stage.config) is config_of(recipe)
    assert (stage.config.seed, stage.config.save_steps) == (4, 7)


# The pipeline passes every field of every stage on, or refuses it.

BELONGS_TO_THE_PIPELINE = ("output_dir", "seed", "dtype", "remat", "mesh.data", "mesh.tensor")
WORLD = ("label.world.name", "label.world.seed", "label.world.settings")
NOT_FOR_PPO = ("min_new_tokens", "top_k", "top_p", "min_p")


def stage_fields(stages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Path below a pipeline's config, and an override of it that has another value."""
    for stage, recipe in stages.items():
        cls = config_of(recipe)
        for field in plain(cls):
            yield f"{stage}.{field}", RECIPE_FIELDS[recipe, field].change[0]
        for group, inner in groups(cls).items():
            for path, change in group_fields(inner):
                yield f"{stage}.{group}.{path}", change


def group_fields(cls: type[Config]) -> Iterator[tuple[str, str]]:
    for field in plain(cls):
        yield field, GROUPS[cls.__name__, field].change[0]
    for group, inner in groups(cls).items():
        yield from ((f"{group}.{path}", change) for path, change in group_fields(inner))


def test_the_experiment_passes_every_field_of_a_stage_on_or_refuses_it():
    base = ("adapt={}", "grids.main.start=[adapted]", "grids.main.losses=[naive]")
    before, refused = w2s_stages.observed(*base), set()
    for path, change in stage_fields(W2S_STAGES):
        value = change.partition("=")[2]
        try:
            W2SConfig.load(None, (*base, f"{path}={value}"))
        except ConfigError:
            refused.add(path)
            continue
        assert w2s_stages.observed(*base, f"{path}={value}") != before, f"{path} does not arrive"
    stated = {f"{block}.{field}" for block, own in OWN.items() for field in own}
    fields = {path for path, _ in stage_fields(W2S_STAGES)}
    wanted = {path for path in fields for own in stated if f"{path}.".startswith(f"{own}.")}
    assert refused == wanted


def test_the_pipeline_passes_every_field_of_a_stage_on_or_refuses_it():
    base = ("sft={}", "ppo.batch_size=8", "sample.prompts.files=[a.jsonl]")
    before, refused = planned(*base), []
    for path, change in stage_fields(STAGES):
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
        for path, _ in stage_fields(STAGES)
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
