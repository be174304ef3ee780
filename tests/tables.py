"""The smallest language model there is: a table of logits, one row for each last token.

It is there for speed (an update compiles in a second, a transformer's in ten) and for derivations
by hand: a log-prob is a log-softmax of a row, a value that row times the head. What only a
transformer has (positions, padding that could leak, attention) is tested with `tiny.LM`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrlhf.algorithms.base import Algorithm, Batch, State
from jaxrlhf.algorithms.ppo import Settings, ppo
from jaxrlhf.algorithms.reward import reward
from jaxrlhf.algorithms.sft import sft
from jaxrlhf.algorithms.weak_to_strong import Settings as WeakSettings
from jaxrlhf.algorithms.weak_to_strong import of_pairs, of_texts, weak_to_strong
from jaxrlhf.models import LM, heads, make_classifier, make_scalar_model
from jaxrlhf.sampling import Sampling

VOCAB, PAD, EOS = 6, 0, 1
PROMPT_LENGTH, RESPONSE_LENGTH = 2, 5


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """What the samplers read of a model's config."""

    vocab_size: int
    max_positions: int = 64
    rope_scaling: None = None
    final_soft_cap: None = None


def table_lm(config: TableConfig) -> LM:
    """Parameters `{"embed": {"embedding": [V, V]}}`; the hidden state is the row of logits."""

    def hidden(params, tokens, mask, *, segment_ids=None, final_norm=True, last=None):
        tokens = jnp.where(mask, tokens, 0)[:, -(last or 0) :]
        return params["embed"]["embedding"][tokens]

    def prefill(params, tokens, mask, *, cache_length):
        return params["embed"]["embedding"][tokens[:, -1]], ()

    def init(key):
        return {"embed": {"embedding": jax.random.normal(key, (config.vocab_size,) * 2)}}

    return LM(
        config=config,  # pyright: ignore[reportArgumentType]
        init=init,
        hidden=hidden,
        unembed=lambda params: jnp.eye(config.vocab_size),
        logits=lambda params, hidden: hidden,
        decode_params=lambda params: params,
        prefill=prefill,
        decode=lambda params, token, cache: (params["embed"]["embedding"][token], cache),
    )


CONFIG = TableConfig(VOCAB)
LM_TABLE = table_lm(CONFIG)
# `ppo` asks for the scalar model of its language model's config: this is the answer it will get.
with mock.patch.object(heads, "make_lm", lambda config: LM_TABLE):
    SCALAR = make_scalar_model(CONFIG)  # pyright: ignore[reportArgumentType]
    CLASSIFIER = make_classifier(CONFIG)  # pyright: ignore[reportArgumentType]


def table(seed: int, *, scale: float = 0.7, size: int = VOCAB) -> dict[str, Any]:
    """A random policy."""
    rng = np.random.default_rng(seed)
    return {"embed": {"embedding": jnp.asarray(rng.normal(0, scale, (size, size)), jnp.float32)}}


def head(seed: int, *, scale: float = 0.5) -> dict[str, Any]:
    """A random value head."""
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(0, scale, VOCAB), jnp.float32)
    return {"kernel": kernel, "bias": jnp.float32(0.2)}


def params(settings: Settings) -> dict[str, Any]:
    """Policy and value parameters, none of them zero or equal."""
    value = {"head": head(2)}
    if settings.value_model == "separate":
        value["lm"] = table(3)
    return {"policy": table(1), "value": value}


def prompts(size: int = 8) -> dict[str, jax.Array]:
    """Prompts of one or two tokens, on the left padded."""
    tokens = np.random.default_rng(0).integers(2, VOCAB, (size, PROMPT_LENGTH))
    mask = np.ones((size, PROMPT_LENGTH), bool)
    mask[::3, 0] = False
    return {
        "prompt_tokens": jnp.asarray(np.where(mask, tokens, PAD), jnp.int32),
        "prompt_mask": jnp.asarray(mask),
        "row": jnp.arange(size),
    }


def sampling(**changes: Any) -> Sampling:
    """Five tokens that may end early."""
    settings = {"max_new_tokens": RESPONSE_LENGTH, "stop_ids": (EOS,), "pad_id": PAD} | changes
    return Sampling(**settings)


def odd_share(rollout) -> jax.Array:
    """A reward rule: share of odd tokens in the response that the reward sees, times 3."""
    response = rollout.tokens[:, rollout.prompt_length :]
    seen = rollout.mask[:, rollout.prompt_length :]
    return 3 * jnp.sum((response % 2 == 1) & seen, axis=1) / jnp.maximum(jnp.sum(seen, axis=1), 1)


def sgd(rate: float) -> optax.GradientTransformation:
    """Plain gradient steps; the rate is part of the state, so that one program serves them all."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def at_rate(state: State, rate: float) -> State:
    """The same state with another rate of `sgd`."""
    hyperparams = state.opt_state.hyperparams | {"learning_rate": jnp.float32(rate)}
    return state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))


class Run(NamedTuple):
    """A method on a table, with its first batch."""

    algorithm: Algorithm
    state: State
    batch: Batch
    update: Any  # jitted
    key: jax.Array
    settings: Any = None


def texts(size: int = 8, *, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """`[size, 7]` random texts of ragged length, every other one padded on the left; and masks."""
    rng = np.random.default_rng(seed)
    tokens, lengths = rng.integers(2, VOCAB, (size, 7)), rng.integers(3, 8, size)
    mask = np.arange(7)[None, :] < lengths[:, None]
    mask[::2] = mask[::2, ::-1]
    return jnp.asarray(np.where(mask, tokens, PAD), jnp.int32), jnp.asarray(mask)


def supervised_run(algorithm: Algorithm, params: Any, batch: Batch) -> Run:
    """A method that brings its own batch."""
    key = jax.random.key(0)
    return Run(algorithm, algorithm.init(params, key), batch, jax.jit(algorithm.update), key)


def sft_run(optimizer: optax.GradientTransformation | None = None, **options: Any) -> Run:
    """`sft` on eight texts, of which the second half of the tokens counts."""
    tokens, mask = texts()
    loss_mask = mask & (jnp.cumsum(mask, axis=1) * 2 > jnp.sum(mask, axis=1, keepdims=True))
    batch = {"tokens": tokens, "mask": mask, "loss_mask": loss_mask}
    return supervised_run(sft(LM_TABLE, optimizer or sgd(1.0), **options), table(1), batch)


def reward_run(optimizer: optax.GradientTransformation | None = None, **options: Any) -> Run:
    """`reward` on eight pairs, with soft labels, margins and weights."""
    (chosen, chosen_mask), (rejected, rejected_mask) = texts(seed=0), texts(seed=1)
    batch = {
        "chosen_tokens": chosen,
        "chosen_mask": chosen_mask,
        "rejected_tokens": rejected,
        "rejected_mask": rejected_mask,
        "label": jnp.array([1, 1, 1, 0.8, 0.6, 0.3, 1, 0], jnp.float32),
        "margin": jnp.array([0, 0, 0.5, 0, 0.5, 0, 1, 0], jnp.float32),
        "weight": jnp.array([1, 1, 1, 2, 0.5, 1, 0, 1], jnp.float32),
    }
    params = {"lm": table(3), "head": head(2)}
    return supervised_run(reward(SCALAR, optimizer or sgd(1.0), **options), params, batch)


WEAK = (0.9, 0.2, 0.6, 0.45, 0.7, 0.3, 0.8, 0.1)  # P(class 1) of the teacher


def weak_run(
    settings: WeakSettings,
    optimizer: optax.GradientTransformation | None = None,
    *,
    step: int = 5,
    pairs: bool = False,
    **options: Any,
) -> Run:
    """`weak_to_strong` at update `step` of 20, on eight texts or pairs of them."""
    (tokens, mask), (rejected, rejected_mask) = texts(seed=0), texts(seed=1)
    label = jnp.array(WEAK)
    if pairs:
        batch = {"chosen_tokens": tokens, "chosen_mask": mask, "label": label}
        batch |= {"rejected_tokens": rejected, "rejected_mask": rejected_mask}
        params, predict = {"lm": table(3), "head": head(2)}, of_pairs(SCALAR)
    else:
        batch = {"tokens": tokens, "mask": mask, "label": jnp.stack([1 - label, label], axis=1)}
        kernel = jnp.stack([head(5)["kernel"], head(6)["kernel"]], axis=1)
        params, predict = {"lm": table(3), "classifier": {"kernel": kernel}}, of_texts(CLASSIFIER)
    algorithm = weak_to_strong(predict, optimizer or sgd(1.0), settings, total_steps=20, **options)
    run = supervised_run(algorithm, params, batch)
    return run._replace(state=run.state._replace(step=jnp.int32(step)), settings=settings)


def ppo_run(
    settings: Settings,
    *,
    reward_fn=odd_share,
    optimizer: optax.GradientTransformation | None = None,
    reference: Any = None,
    sample: Sampling | None = None,
    size: int = 8,
    **options: Any,
) -> Run:
    """`ppo` against another random table as the reference, and SGD at rate 1 as the optimizer."""
    algorithm = ppo(
        LM_TABLE,
        table(4) if reference is None else reference,
        reward_fn,
        optimizer or sgd(1.0),
        sample or sampling(),
        settings,
        **options,
    )
    key = jax.random.key(0)
    state = algorithm.init(params(settings), key)
    batch, _ = algorithm.collect(state, functools.partial(prompts, size), key)
    return Run(algorithm, state, batch, jax.jit(algorithm.update), key, settings)


RUNS = {
    "weak-to-strong": functools.partial(weak_run, WeakSettings(), micro_batches=2),
    "weak-to-strong pairs": functools.partial(weak_run, WeakSettings(loss="product"), pairs=True),
    "sft": functools.partial(sft_run, micro_batches=2),
    "reward": functools.partial(reward_run, center_rewards_coefficient=0.1, lapse=0.1),
    "ppo": functools.partial(
        ppo_run, Settings(num_ppo_epochs=2, kl_target=0.5, normalize_scores=True)
    ),
    "ppo, stopping early": functools.partial(
        ppo_run, Settings(value_model="shared", num_ppo_epochs=2, target_kl=1e-4)
    ),
}
