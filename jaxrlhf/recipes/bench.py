"""`jaxrlhf bench`: how fast PPO is here, by phase, on random weights of any shape.

It runs the training loop and the PPO of `jaxrlhf ppo` on made-up prompts, with responses of full
length. Sizes and defaults are those of a comparison with TRL's PPO (`scripts/compare_trl.py`): a
Llama with an MLP of 4 x hidden, a value network and a reward model of the policy's size.

Figures are medians over the steps after the warm-up. Compilation is apart: it falls into the first
steps. `fraction` is the share of the machine's rate that goes into needed operations
(`flops.py`): of matrix products for score and update, of memory traffic for generate, which reads
all weights and the cache for every token. On a CPU both are of processor seconds.
"""

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from jaxrlhf import hardware, loop, monitoring, rewards
from jaxrlhf.algorithms import ppo
from jaxrlhf.algorithms.base import Algorithm
from jaxrlhf.config import Config
from jaxrlhf.models import make_lm, make_scalar_model, transformer_config
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.optim import make_optimizer
from jaxrlhf.progress import progress, table
from jaxrlhf.recipes import blocks, flops
from jaxrlhf.sampling import Sampling

PHASES = ("generate", "score", "update")
MEASURED = [(phase, of) for phase in (*PHASES, "step") for of in ("s", "cpu_s")]

Row = dict[str, float]


class BenchConfig(Config):
    """Shape, batch and hyper-parameters of a timed run."""

    hidden: int = Field(default=128, ge=8, description="width; the MLP has 4 times as much")
    layers: int = Field(default=2, ge=1, description="transformer blocks")
    heads: int = Field(default=4, ge=1, description="attention heads")
    kv_heads: int | None = Field(default=None, ge=1, description="key/value heads; null: as heads")
    mlp: int | None = Field(default=None, ge=8, description="width of the MLP; null: 4 x hidden")
    vocab: int = Field(default=512, ge=16, description="vocabulary entries")
    batch_size: int = Field(default=16, ge=1, description="rollouts a PPO step")
    prompt_length: int = Field(default=16, ge=1, description="tokens")
    response_length: int = Field(default=24, ge=2, description="tokens; nothing ends one earlier")
    ppo_epochs: int = Field(default=4, ge=1, description="passes over each batch of rollouts")
    minibatches: int = Field(default=1, ge=1, description="optimiser steps a pass")
    grad_accum: int = Field(default=1, ge=1, description="micro-batches a minibatch")
    value_model: Literal["separate", "shared"] = Field(
        default="separate", description="a value network, or a head on the policy's trunk"
    )
    lr: float = Field(default=1e-4, ge=0, description="learning rate, constant")
    max_grad_norm: float | None = Field(
        default=None, gt=0, description="gradients are clipped to it; null: not, as in TRL's PPO"
    )
    kl_coef: float = Field(default=0.05, ge=0, description="beta, of k1 in the reward")
    temperature: float = Field(default=0.7, gt=0, description="of sampling")
    reward: Literal["model", "token"] = Field(
        default="model",
        description="a random reward model, or the share of one token times 10 (can be learned)",
    )
    target_token: int = Field(
        default=7, ge=0, description="which token that is; no prompt holds it"
    )
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype")
    remat: bool = Field(default=False, description="recompute a layer's activations")
    chunk_size: int | None = Field(
        default=None, ge=1, description="vocabulary entries at a time in the head; null: all"
    )
    steps: int = Field(default=8, ge=1, description="PPO steps")
    warmup: int = Field(default=3, ge=0, description="steps left out of the summary")
    seed: int = Field(default=0, description="of weights, prompts and samples")
    json_file: str | None = Field(default=None, description="summary and steps go here")

    def model(self) -> TransformerConfig:
        """The policy's."""
        return transformer_config(
            "llama",
            vocab_size=self.vocab,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            d_model=self.hidden,
            d_ff=self.mlp or 4 * self.hidden,
            max_positions=max(64, self.prompt_length + self.response_length),
            dtype=self.dtype,
            remat=self.remat,
        )


CONFIG = BenchConfig
EXAMPLE = "jaxrlhf bench hidden=256 layers=4 vocab=8192 batch_size=8 value_model=shared"


def run(config: BenchConfig) -> dict[str, Any]:
    """Time it; print a table, write JSON; the summary has medians."""
    algorithm, params = make(config)
    steps, batch = timed(config, algorithm, params)
    found = summary(config, steps, hardware.rates())
    found["compiler_flops_an_optimizer_step"] = loop.flops(algorithm, params, batch)
    show(found)
    if config.json_file:
        facts = {"args": config.model_dump(), "summary": found, "steps": steps}
        Path(config.json_file).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return found


def make(config: BenchConfig) -> tuple[Algorithm, Any]:
    """PPO and the parameters that it starts from."""
    lm = make_lm(config.model())
    scalar = make_scalar_model(config.model())
    policy_key, value_key, reward_key = jax.random.split(jax.random.key(config.seed), 3)
    policy, value = lm.init(policy_key), scalar.init(value_key, zero=True)
    if config.value_model == "shared":
        value = {"head": value["head"]}
    settings = ppo.Settings(
        value_model=config.value_model,
        num_ppo_epochs=config.ppo_epochs,
        num_mini_batches=config.minibatches,
        gradient_accumulation_steps=config.grad_accum,
        kl_coef=config.kl_coef,
    )
    reward_fn = (
        rewards.from_model(scalar, scalar.init(reward_key))
        if config.reward == "model"
        else share_of(config.target_token)
    )
    algorithm = ppo.ppo(
        lm,
        jax.tree.map(jnp.copy, policy),
        reward_fn,
        make_optimizer(
            learning_rate=config.lr,
            lr_scheduler_type="constant",
            total_steps=config.steps,
            max_grad_norm=config.max_grad_norm,
        ),
        Sampling(max_new_tokens=config.response_length, temperature=config.temperature),
        settings,
        chunk_size=config.chunk_size,
    )
    return algorithm, {"policy": policy, "value": value}


def share_of(token: int) -> rewards.RewardFn:
    """10 times the share of a token in the response: a reward that is learned in a minute."""

    def score(rollout: rewards.Rollout) -> np.ndarray:
        response = np.asarray(rollout.tokens)[:, rollout.prompt_length :]
        return 10.0 * np.mean(response == token, axis=1)

    return score


def prompts(config: BenchConfig):
    """Batches without end, of random tokens other than the target and the first two."""
    random = np.random.default_rng(config.seed)
    shape = config.batch_size, config.prompt_length
    while True:
        tokens = random.integers(2, config.vocab - 1, size=shape, dtype=np.int32)
        yield {
            "prompt_tokens": tokens + (tokens >= config.target_token),
            "prompt_mask": np.ones(shape, bool),
            "row": np.arange(config.batch_size),
        }


def timed(config: BenchConfig, algorithm: Algorithm, params: Any) -> tuple[list[Row], Any]:
    """Every step's figures, by the names of the comparison's other side; and the last batch."""
    steps: list[Row] = []
    batches: list[Any] = []
    clock = monitoring.Stopwatch()

    def keep(step, state, batch):
        batches[:] = [batch]
        return {}

    def on_step(step, metrics):
        metrics = {**metrics, **clock.lap("step")}
        row = {"score": metrics["objective/score"], "kl": metrics["objective/kl_k1"]}
        row |= {f"{phase}_{of}": metrics[f"time/{phase}_{of}"] for phase, of in MEASURED}
        row |= {name: metrics[f"time/{name}"] for name in ("compile_s", "peak_memory_mib")}
        steps.append(row)
        bar.advance(score=row["score"], seconds=row["step_s"])

    with progress(config.steps, "bench") as bar:
        loop.fit(
            algorithm,
            params,
            prompts(config),
            steps=config.steps,
            seed=config.seed,
            hooks=[keep],
            on_step=on_step,
            donate=True,
        )
    return steps, batches[0]


def summary(config: BenchConfig, steps: list[Row], rates: hardware.Rates | None):
    """Medians, and what follows from them."""
    kept = steps[config.warmup :] or steps
    found: dict[str, Any] = {
        f"{phase}_{of}": statistics.median(row[f"{phase}_{of}"] for row in kept)
        for phase, of in MEASURED
    }
    tokens = config.batch_size * config.response_length
    device = jax.local_devices()[0]
    found |= {
        "generated_tokens_per_s": tokens / found["generate_s"],
        "scored_tokens_per_s": tokens / found["score_s"],
        "update_tokens_per_s": tokens * config.ppo_epochs / found["update_s"],
        "samples_per_s": config.batch_size / found["step_s"],
        "optimizer_steps_per_ppo_step": config.ppo_epochs * config.minibatches,
        "compile_s": sum(row["compile_s"] for row in steps),
        "peak_memory_mib": steps[-1]["peak_memory_mib"],
        "first_score": steps[0]["score"],
        "last_score": steps[-1]["score"],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": device.device_kind,
        "load_average": os.getloadavg()[0],
    }
    return found | needed(config) | fractions(config, found, rates)


def needed(config: BenchConfig) -> dict[str, float]:
    """Floating-point operations of each phase, by formula."""
    model = config.model()
    shape = {"rows": config.batch_size, "prompt": config.prompt_length}
    shape["new"] = config.response_length
    shared = config.value_model == "shared"
    return {
        "generate_flops": flops.generate(model, **shape),
        "score_flops": flops.score(model, **shape, reward=config.reward == "model"),
        "update_flops": flops.update(model, **shape, epochs=config.ppo_epochs, shared=shared),
    }


def fractions(
    config: BenchConfig, found: dict[str, Any], rates: hardware.Rates | None
) -> dict[str, float]:
    """Shares of the machine's rates; nothing where those are not known."""
    if rates is None:
        return {}
    of = "cpu_s" if rates.measured else "s"
    read = config.response_length * step_bytes(config)
    work = needed(config)
    return {
        "matrix_flops_per_s": rates.flops,
        "bytes_read_per_s": rates.bandwidth,
        "generate_fraction": read / rates.bandwidth / found[f"generate_{of}"],
        "score_fraction": work["score_flops"] / rates.flops / found[f"score_{of}"],
        "update_fraction": work["update_flops"] / rates.flops / found[f"update_{of}"],
    }


def step_bytes(config: BenchConfig) -> float:
    """Bytes that drawing one token of every row has to read: all weights, and half-full caches."""
    model = config.model()
    weights = model.num_layers * sum(flops.projections(model)) + model.d_model * model.vocab_size
    columns = config.prompt_length + config.response_length / 2
    heads = model.num_kv_heads or model.num_heads
    cache = 2 * model.num_layers * config.batch_size * columns * heads * (model.head_dim or 0)
    return (weights + cache) * jnp.dtype(config.dtype).itemsize


def show(found: dict[str, Any]) -> None:
    """A row a phase."""
    headers = ["phase", "seconds", "processor seconds", "tokens/s", "GFLOP needed", "fraction"]
    speeds = ("generated_tokens_per_s", "scored_tokens_per_s", "update_tokens_per_s")
    rows = [
        [
            phase,
            found[f"{phase}_s"],
            found[f"{phase}_cpu_s"],
            found[speed],
            found[f"{phase}_flops"] / 1e9,
            found.get(f"{phase}_fraction"),
        ]
        for phase, speed in zip(PHASES, speeds, strict=True)
    ]
    table(f"PPO on {found['device']}", headers, rows)
