"""Probes of sft, reward and ppo, and of the groups that training shares."""

import config_probes as probes
import micro
import recipe_probes as recipes
from probing import Probe, of, p


def adapters(*change: str, seen: str = "params") -> Probe:
    """A field of `lora`, of adapters of rank 2 on the tiny pipeline's model."""
    base = ("model_path=run/sft/model", "lora.rank=2")
    return Probe(recipes.part("sft", seen), tuple(f"lora.{text}" for text in change), base)


HELD_OUT_PROMPTS = ("eval_prompts.files=[run/data/test_prompts.jsonl]",)
MODEL, OPTIMIZER, DATA = probes.model, probes.optimizer, probes.data
PROMPTS, SAMPLING, SETTINGS = probes.prompts, probes.sampling, probes.settings
FOLDER = {
    "output_dir": "output_dir=there",
    "save_steps": "save_steps=3",
    "keep_checkpoints": "keep_checkpoints=1",
    "tensorboard": "tensorboard=false",
    "wandb_project": "wandb_project=mine",
    "profile": "profile=2",
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
REWARD_RULE = ("reward_model=null", "reward_function=recipe_probes:by_letters")


# Groups: (class, field) -> probe. The change is an override of the class itself.

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
    ("OptimizerConfig", "adam_mu_dtype"): p(OPTIMIZER, "adam_mu_dtype=bfloat16"),
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
    ("SamplingConfig", "slots"): p(SAMPLING, "slots=1"),
    ("SamplingConfig", "stop_at_eos"): p(SAMPLING, "stop_at_eos=false"),
    ("TruncationConfig", "token"): p(probes.truncation, "token=pie"),
    ("TruncationConfig", "after"): p(probes.truncation, "after=1", base=("token=pie",)),
    ("LoraConfig", "rank"): adapters("rank=3"),
    ("LoraConfig", "alpha"): adapters("alpha=5", seen="frozen"),
    ("LoraConfig", "targets"): adapters("targets=[q_proj]"),
    ("LoraConfig", "use_rslora"): adapters("use_rslora=true", seen="frozen"),
    ("SettingsConfig", "value_model"): p(SETTINGS, "value_model=shared"),
    ("SettingsConfig", "num_ppo_epochs"): p(SETTINGS, "num_ppo_epochs=3"),
    ("SettingsConfig", "num_mini_batches"): p(SETTINGS, "num_mini_batches=2"),
    ("SettingsConfig", "gradient_accumulation_steps"): p(SETTINGS, "gradient_accumulation_steps=2"),
    ("SettingsConfig", "gamma"): p(SETTINGS, "gamma=0.9"),
    ("SettingsConfig", "lam"): p(SETTINGS, "lam=0.8"),
    ("SettingsConfig", "cliprange"): p(SETTINGS, "cliprange=0.3"),
    ("SettingsConfig", "cliprange_value"): p(SETTINGS, "cliprange_value=null"),
    ("SettingsConfig", "vf_coef"): p(SETTINGS, "vf_coef=0.7"),
    ("SettingsConfig", "entropy_coef"): p(SETTINGS, "entropy_coef=0.01"),
    ("SettingsConfig", "kl_coef"): p(SETTINGS, "kl_coef=0.3"),
    ("SettingsConfig", "kl_target"): p(SETTINGS, "kl_target=6.0"),
    ("SettingsConfig", "kl_horizon"): p(SETTINGS, "kl_horizon=77", base=("kl_target=6.0",)),
    ("SettingsConfig", "kl_estimator"): p(SETTINGS, "kl_estimator=k3"),
    ("SettingsConfig", "kl_in"): p(SETTINGS, "kl_in=loss", "kl_estimator=k2"),
    ("SettingsConfig", "missing_eos_penalty"): p(SETTINGS, "missing_eos_penalty=-1"),
    ("SettingsConfig", "missing_eos_rule"): p(
        SETTINGS, "missing_eos_rule=subtract", base=("missing_eos_penalty=1",)
    ),
    ("SettingsConfig", "reward_clip"): p(SETTINGS, "reward_clip=2"),
    ("SettingsConfig", "normalize_scores"): p(SETTINGS, "normalize_scores=true"),
    ("SettingsConfig", "whiten_rewards"): p(SETTINGS, "whiten_rewards=true"),
    ("SettingsConfig", "whiten_advantages"): p(SETTINGS, "whiten_advantages=false"),
    ("SettingsConfig", "target_kl"): p(SETTINGS, "target_kl=0.1"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    **COMMON,
    ("sft", "group_by_length"): of("sft", "batch", "group_by_length=true"),
    ("reward", "group_by_length"): of("reward", "batch", "group_by_length=true"),
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
    ("reward", "packing"): of("reward", "collected", "packing=packed"),
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
    ("reward", "warm_start"): of(
        "reward", "params", "warm_start=run/reward/model", "model_path=null"
    ),
    ("reward", "loss"): of("reward", "update", "loss=regression"),
    ("reward", "huber_delta"): of("reward", "update", "huber_delta=3", base=("loss=regression",)),
    ("reward", "lapse"): of("reward", "update", "lapse=0.1"),
    ("reward", "normalize"): of("reward", "params", "normalize=none", base=("normalize=pairs",)),
    ("reward", "normalize_before"): of(
        "reward", "params", "normalize_before=false", base=("normalize=pairs",)
    ),
    ("reward", "reference"): p(
        recipes.asked("reward"), "reference=run/pretrain/model", base=recipes.REFERENCE
    ),
    ("ppo", "policy"): of("ppo", "params", "policy=run/pretrain/model"),
    ("ppo", "reference"): p(recipes.reference_of_ppo, "reference=run/pretrain/model"),
    ("ppo", "stop_kl"): p(recipes.arrives, "stop_kl=3", base=("eval_steps=2", *HELD_OUT["ppo"])),
    ("ppo", "reward_model"): p(recipes.scores, f"reward_model={recipes.OTHER_REWARD}"),
    ("ppo", "reward_function"): p(
        recipes.scores, "reward_function=recipe_probes:by_words", base=REWARD_RULE
    ),
    ("ppo", "frozen_dtype"): p(recipes.reference_of_ppo, "frozen_dtype=bfloat16"),
    ("ppo", "packing"): p(recipes.packing_of_ppo, "packing=packed"),
    ("ppo", "chunk_size"): of("ppo", "update", "chunk_size=16"),
    ("ppo", "shown_completions"): p(
        recipes.completions, "shown_completions=2", base=HELD_OUT["ppo"]
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
}
