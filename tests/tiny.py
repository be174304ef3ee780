"""The one tiny model and the small batches that many tests share.

The world is a two-armed bandit for language models: after any prompt, token `GOOD` is right and
everything else is wrong. Every method can be asked to learn that.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrlhf import inference, sharding
from jaxrlhf.algorithms.base import Algorithm, Batch, Metrics, State
from jaxrlhf.algorithms.ppo import Settings, ppo
from jaxrlhf.algorithms.reward import reward
from jaxrlhf.algorithms.sft import sft
from jaxrlhf.algorithms.weak_to_strong import Settings as WeakSettings
from jaxrlhf.algorithms.weak_to_strong import of_texts, weak_to_strong
from jaxrlhf.models import (
    Lora,
    heads,
    lora,
    make_classifier,
    make_lm,
    make_scalar_model,
    transformer_config,
)
from jaxrlhf.sampling import Sampling

PAD, EOS, GOOD, BAD, VOCAB = 0, 1, 2, 3, 8

CONFIG = transformer_config(
    "llama",
    vocab_size=VOCAB,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    d_model=16,
    d_ff=32,
    max_positions=16,
    initializer_range=0.3,
)
LM = make_lm(CONFIG)
SCALAR = make_scalar_model(CONFIG)
CLASSIFIER = make_classifier(CONFIG)
SAMPLING = Sampling(max_new_tokens=4, stop_ids=(EOS,), pad_id=PAD)
SETTINGS = Settings()
LORA = Lora(rank=2, alpha=4.0)


class Cycle:
    """An endless iterator over a list of batches that knows its position, as data pipelines do."""

    def __init__(self, batches: list[dict[str, np.ndarray]]):
        self.batches, self.position = batches, 0

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self.batches[self.position % len(self.batches)]
        self.position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Case(NamedTuple):
    """An algorithm with something to learn, and how to see that it did."""

    algorithm: Algorithm
    params: Any
    batches: list[dict[str, np.ndarray]]
    progress: Any  # params -> float, which training must raise


def good_share(rollout) -> jax.Array:
    """A reward rule on tokens: share of GOOD among the response tokens the reward sees."""
    response = rollout.tokens[:, rollout.prompt_length :]
    mask = rollout.mask[:, rollout.prompt_length :]
    return jnp.sum((response == GOOD) & mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def good_log_prob(params: Any, tokens: np.ndarray, mask: np.ndarray) -> float:
    """Mean log-prob of GOOD after these texts (as long as one more token fits)."""
    tokens = np.pad(tokens, ((0, 0), (0, 1)), constant_values=GOOD)
    mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    found = inference.score(LM, params, tokens, mask, response_length=1)
    return float(found.log_probs.mean())


def texts(rng: np.random.Generator, last: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """`[size, 13]` random texts of three to six tokens whose last one is `last`, then padding."""
    tokens = rng.integers(4, VOCAB, (size, 13)).astype(np.int32)
    lengths = rng.integers(3, 7, size)
    mask = np.arange(13)[None, :] < lengths[:, None]
    tokens[np.arange(size), lengths - 1] = last
    return np.where(mask, tokens, PAD), mask


def prompts(rng: np.random.Generator, size: int = 8) -> dict[str, np.ndarray]:
    """Prompts of 2 or 3 tokens at the end of 10 columns."""
    tokens = rng.integers(4, VOCAB, (size, 10)).astype(np.int32)
    mask = np.arange(10)[None, :] >= 7 + rng.integers(0, 2, size)[:, None]
    return {
        "prompt_tokens": np.where(mask, tokens, PAD),
        "prompt_mask": mask,
        "row": np.arange(size, dtype=np.int32),
    }


def sft_case(optimizer, *, micro_batches: int = 1, chunk_size: int | None = None) -> Case:
    rng = np.random.default_rng(0)
    tokens, mask = texts(rng, GOOD)
    last = mask & ~np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    batch = {"tokens": tokens, "mask": mask, "loss_mask": last}
    params = LM.init(jax.random.key(1))

    def progress(params):
        return good_log_prob(params, tokens[:, :2], mask[:, :2])

    algorithm = sft(LM, optimizer, micro_batches=micro_batches, chunk_size=chunk_size)
    return Case(algorithm, params, [batch], progress)


def reward_case(optimizer, **options: Any) -> Case:
    rng = np.random.default_rng(0)
    chosen, chosen_mask = texts(rng, GOOD)
    rejected, rejected_mask = texts(rng, BAD)
    batch = {
        "chosen_tokens": chosen,
        "chosen_mask": chosen_mask,
        "rejected_tokens": rejected,
        "rejected_mask": rejected_mask,
        "label": np.ones(8, np.float32),
        "margin": np.zeros(8, np.float32),
        "weight": np.ones(8, np.float32),
    }
    params = SCALAR.init(jax.random.key(1))

    def progress(params):
        good = inference.reward_scores(SCALAR, params, chosen, chosen_mask)
        bad = inference.reward_scores(SCALAR, params, rejected, rejected_mask)
        return float((good - bad).mean())

    algorithm = reward(SCALAR, optimizer, **options)
    return Case(algorithm, params, [batch], progress)


def ppo_params(settings: Settings = SETTINGS) -> dict[str, Any]:
    """Policy and value parameters; the value head starts at zero."""
    policy = LM.init(jax.random.key(1))
    value = SCALAR.init(jax.random.key(2), policy, zero=True)
    if settings.value_model == "shared":
        value = {"head": value["head"]}
    return {"policy": policy, "value": value}


def ppo_case(
    optimizer,
    *,
    settings: Settings = SETTINGS,
    reward_fn=good_share,
    sampling: Sampling = SAMPLING,
    **options,
) -> Case:
    params = ppo_params(settings)
    batch = prompts(np.random.default_rng(0))
    algorithm = ppo(LM, params["policy"], reward_fn, optimizer, sampling, settings, **options)

    def progress(params):
        return good_log_prob(params["policy"], batch["prompt_tokens"], batch["prompt_mask"])

    return Case(algorithm, params, [batch], progress)


def lora_sft_case(optimizer) -> Case:
    """SFT of adapters alone."""
    full = sft_case(optimizer)
    frozen = lora.frozen(LORA, full.params)
    return Case(
        sft(LM, optimizer, frozen=frozen),
        lora.init(LORA, jax.random.key(3), full.params),
        full.batches,
        lambda adapters: full.progress(lora.attach(frozen, adapters)),
    )


def lora_reward_case(optimizer) -> Case:
    """A reward model of which adapters and the head train."""
    full = reward_case(optimizer)
    frozen = {"lm": lora.frozen(LORA, full.params["lm"])}
    adapters = lora.init(LORA, jax.random.key(3), full.params["lm"])
    return Case(
        reward(SCALAR, optimizer, micro_batches=2, frozen=frozen),
        {"lm": adapters, "head": full.params["head"]},
        full.batches,
        lambda params: full.progress(lora.attach(frozen, params)),
    )


def lora_ppo_case(
    optimizer, *, settings: Settings = SETTINGS, reward_fn=good_share, **options
) -> Case:
    """PPO of which adapters and the value head train; policy, value and reference share a base."""
    base, batch = LM.init(jax.random.key(1)), prompts(np.random.default_rng(0))
    trunk = lora.frozen(LORA, base)
    frozen, value = {"policy": trunk}, {"head": heads.init_head(CONFIG.d_model, jax.random.key(2))}
    if settings.value_model == "separate":
        frozen["value"] = {"lm": trunk}
        value["lm"] = lora.init(LORA, jax.random.key(4), base)
    params = {"policy": lora.init(LORA, jax.random.key(3), base), "value": value}
    algorithm = ppo(LM, base, reward_fn, optimizer, SAMPLING, settings, frozen=frozen, **options)

    def progress(params):
        policy = lora.attach(trunk, params["policy"])
        return good_log_prob(policy, batch["prompt_tokens"], batch["prompt_mask"])

    return Case(algorithm, params, [batch], progress)


def weak_case(
    optimizer,
    *,
    settings: WeakSettings = WeakSettings(),
    micro_batches: int = 1,
    probe: bool = False,
    asks_teacher: bool = False,
) -> Case:
    """Half of the texts end in GOOD, which is class 1, and the teacher says so with .8."""
    rng = np.random.default_rng(0)
    (good, good_mask), (bad, bad_mask) = texts(rng, GOOD, 4), texts(rng, BAD, 4)
    tokens, mask = np.concatenate([good, bad]), np.concatenate([good_mask, bad_mask])
    truth = np.arange(8) < 4
    positive = np.where(truth, 0.8, 0.2).astype(np.float32)
    batch = {"tokens": tokens, "mask": mask, "label": np.stack([1 - positive, positive], axis=1)}
    whole = CLASSIFIER.init(jax.random.key(1))
    params, frozen = (
        ({"classifier": whole["classifier"]}, {"lm": whole["lm"]}) if probe else (whole, None)
    )

    def teacher(rows):
        is_good = jnp.any((rows["tokens"] == GOOD) & rows["mask"], axis=1)
        return jnp.stack([jnp.where(is_good, 0.2, 0.8), jnp.where(is_good, 0.8, 0.2)], axis=1)

    def progress(params):
        probs = inference.class_probs(CLASSIFIER, {**(frozen or {}), **params}, tokens, mask)
        return float(np.log(np.asarray(probs)[np.arange(8), truth.astype(int)]).mean())

    algorithm = weak_to_strong(
        of_texts(CLASSIFIER),
        optimizer,
        settings,
        total_steps=20,
        micro_batches=micro_batches,
        teacher=teacher if asks_teacher else None,
        frozen=frozen,
    )
    return Case(algorithm, params, [batch], progress)


CASES = {
    "sft": sft_case,
    "reward": reward_case,
    "ppo": lambda optimizer: ppo_case(optimizer, settings=Settings(num_ppo_epochs=1)),
    "ppo-shared": lambda optimizer: ppo_case(
        optimizer,
        settings=Settings(
            value_model="shared",
            num_ppo_epochs=2,
            num_mini_batches=2,
            gradient_accumulation_steps=2,
        ),
    ),
    "reward-packed": lambda optimizer: reward_case(optimizer, packing="packed", micro_batches=2),
    "ppo-packed": lambda optimizer: ppo_case(
        optimizer,
        settings=Settings(value_model="shared", num_ppo_epochs=2, num_mini_batches=2),
        packing="packed",
    ),
    "lora-sft": lora_sft_case,
    "lora-reward": lora_reward_case,
    "lora-ppo": lambda optimizer: lora_ppo_case(optimizer, settings=Settings(num_ppo_epochs=2)),
    "lora-ppo-shared": lambda optimizer: lora_ppo_case(
        optimizer,
        settings=Settings(
            value_model="shared", num_ppo_epochs=1, num_mini_batches=2, target_kl=1e9
        ),
    ),
    "weak-to-strong": lambda optimizer: weak_case(optimizer, micro_batches=2),
    "weak-to-strong-probe": lambda optimizer: weak_case(
        optimizer,
        settings=WeakSettings(loss="rolling", recent_predictions=12),
        probe=True,
        asks_teacher=True,
    ),
}


def adam(learning_rate: float = 1e-2) -> optax.GradientTransformation:
    """Adam behind a clip; the rate is part of the state, so that one program serves every rate."""

    def make(learning_rate):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, eps=1e-5))

    return optax.inject_hyperparams(make)(learning_rate=learning_rate)


def at_rate(state: State, rate: float) -> State:
    """The same state with another learning rate of `adam`, in the same place."""
    hyperparams = {"learning_rate": 0 * state.opt_state.hyperparams["learning_rate"] + rate}
    return state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))


@functools.cache
def case(name: str) -> Case:
    """The case that tests share, so that its functions are traced once a process."""
    return CASES[name](adam())


class FirstUpdate(NamedTuple):
    """The first update of a case, as `loop.fit` compiles it for one device."""

    case: Case
    state: State
    batch: Batch
    update: Any  # (state, batch) -> (state, metrics), always with the same key
    new: State
    metrics: Metrics


@functools.cache
def first_update(name: str) -> FirstUpdate:
    """Compiled once a session, for every test that wants to look at an update of a transformer."""
    found, key, mesh = case(name), jax.random.key(1), sharding.make_mesh(1, 1)
    algorithm, batches = found.algorithm, Cycle(found.batches)
    layout = sharding.tree_sharding(mesh, jax.eval_shape(algorithm.init, found.params, key))
    state = jax.jit(algorithm.init, out_shardings=layout)(found.params, key)
    batch, _ = algorithm.collect(state, lambda: sharding.shard_batch(mesh, next(batches)), key)
    batch = sharding.shard_batch(mesh, batch)
    donating = jax.jit(algorithm.update, donate_argnums=0, out_shardings=(layout, None))
    frozen = () if algorithm.frozen is None else (algorithm.frozen,)

    def update(state, batch):
        return donating(jax.tree.map(jnp.copy, state), batch, key, *frozen)

    return FirstUpdate(found, state, batch, update, *update(state, batch))
