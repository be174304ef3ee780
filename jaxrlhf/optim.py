"""The optimiser of every method: clip by global norm, Adam, decoupled weight decay, lr schedule.

Plain functions of plain arguments that return an `optax.GradientTransformation`; `OptimizerConfig`
holds the same names for a recipe's YAML. Names and schedules are those of Hugging Face's trainers.
It does not average micro-batches, skip non-finite gradients or know which step it is: that is
`algorithms/` and `loop.py`.

1. The order is clip -> Adam -> decay -> rate, so that clipping acts on the gradient itself (Adam is
   nearly blind to the gradient's scale, hence clipping after it would be another method).
2. Adam's epsilon has two forms. PyTorch adds it to the bias-corrected root, `m̂/(√v̂ + ε)`;
   TensorFlow 1 adds it to the raw root, `(m̂/√v̂)·√v/(√v + ε)`, which makes the first steps smaller.
   OpenAI's 2019 code ran on the latter, with ε = 1e-5.
3. The mean of gradients may be kept in bfloat16 (`adam_mu_dtype`), the mean of squares not: with a
   decay of .999 it moves by a thousandth a step, and bfloat16 resolves four.
4. As in Hugging Face's schedules, step 0 of a warm-up has rate 0.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError, one_of

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
EPSILON_FORMS = ("torch", "tensorflow")


class OptimizerConfig(Config):
    """The arguments of `make_optimizer`, except `total_steps`, which a recipe works out."""

    learning_rate: float = Field(default=1e-3, ge=0, description="peak learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        default="linear",
        description="how the rate goes on after the warm-up; linear and cosine end at 0",
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="updates over which the rate rises from 0"
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="decoupled (AdamW) decay of matrices; norms, biases, embeddings none",
    )
    adam_beta1: float = Field(
        default=0.9, ge=0, lt=1, description="decay of Adam's mean of gradients"
    )
    adam_beta2: float = Field(
        default=0.999, ge=0, lt=1, description="decay of Adam's mean of squares"
    )
    adam_epsilon: float = Field(
        default=1e-8, gt=0, description="added to the root of the mean of squares"
    )
    adam_epsilon_form: Literal["torch", "tensorflow"] = Field(
        default="torch",
        description="epsilon after (torch) or before (tensorflow) the bias correction",
    )
    adam_mu_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="what the mean of gradients is kept in; bfloat16 saves 2 bytes a parameter",
    )
    max_grad_norm: float | None = Field(
        default=1.0,
        gt=0,
        description="gradients are scaled down to this global norm; null: not clipped",
    )


def make_optimizer(
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    lr_scheduler_type: str = "linear",
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    adam_epsilon_form: str = "torch",
    adam_mu_dtype: str = "float32",
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW with global-norm clipping and a schedule; its updates are to be *added* to params.

    θ ← θ − lr(t)·(Adam(g·min(1, max_grad_norm/‖g‖)) + weight_decay·θ)

    Args:
        learning_rate: peak rate; 0 leaves every parameter bit-equal.
        total_steps: updates in the whole run; linear and cosine reach exactly 0 there.
        warmup_steps: updates in which the rate rises linearly from 0.
        lr_scheduler_type: one of `SCHEDULES`.
        weight_decay: only for leaves that `decay_mask` marks.
        adam_epsilon_form: one of `EPSILON_FORMS`, see the header.
        adam_mu_dtype: float32 or bfloat16, see the header.
        max_grad_norm: None switches clipping off.

    Raises:
        ConfigError: an unknown choice, a value out of range, or more warm-up than steps.

    Kingma & Ba 2015 (Adam), Loshchilov & Hutter 2019 (decoupled decay).
    """
    one_of("adam_epsilon_form", adam_epsilon_form, EPSILON_FORMS)
    schedule = make_schedule(
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        lr_scheduler_type=lr_scheduler_type,
    )
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm = {max_grad_norm}: must be above 0, or null for none")
    adam = optax.scale_by_adam if adam_epsilon_form == "torch" else scale_by_tensorflow_adam
    steps = [
        adam(b1=adam_beta1, b2=adam_beta2, eps=adam_epsilon, mu_dtype=adam_mu_dtype),
        optax.scale_by_learning_rate(schedule),
    ]
    if weight_decay:
        steps.insert(1, optax.add_decayed_weights(weight_decay, mask=decay_mask))
    if max_grad_norm is not None:
        steps.insert(0, clip_by_global_norm(max_grad_norm))
    return optax.chain(*steps)


def make_schedule(
    *, learning_rate: float, total_steps: int, warmup_steps: int, lr_scheduler_type: str
) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    Raises:
        ConfigError: an unknown type, or `warmup_steps` that the schedule cannot have.
    """
    one_of("lr_scheduler_type", lr_scheduler_type, SCHEDULES)
    if learning_rate < 0:
        raise ConfigError(f"learning_rate = {learning_rate}: must not be negative")
    if total_steps < 1:
        raise ConfigError(f"total_steps = {total_steps}: must be at least 1")
    if lr_scheduler_type == "constant" and warmup_steps:
        raise ConfigError(
            f"warmup_steps = {warmup_steps}: lr_scheduler_type = 'constant' has no warm-up; "
            "did you mean 'constant_with_warmup'?"
        )
    if not 0 <= warmup_steps <= total_steps:
        raise ConfigError(f"warmup_steps = {warmup_steps}: must be 0 to total_steps, {total_steps}")

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, count / max(1, warmup_steps)) if warmup_steps else 1.0
        left = (total_steps - count) / max(1, total_steps - warmup_steps)
        left = jnp.clip(left, 0.0, 1.0)
        shape = {"linear": left, "cosine": 0.5 * (1.0 - jnp.cos(jnp.pi * left))}
        return learning_rate * warm * shape.get(lr_scheduler_type, jnp.ones_like(left))

    return rate


def scale_by_tensorflow_adam(
    *, b1: float, b2: float, eps: float, mu_dtype: str = "float32"
) -> optax.GradientTransformation:
    """Adam with TensorFlow 1's epsilon: u = m/(1−b1ᵗ)·√(1−b2ᵗ) / (√v + eps).

    Equal to the usual form with an epsilon of eps/√(1−b2ᵗ): 32 times larger at t = 1 for b2 = .999.
    Kingma & Ba 2015, end of section 2 ("epsilon hat"); TensorFlow 1's `AdamOptimizer`.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        mu = optax.tree.zeros_like(params, dtype=mu_dtype)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.OptState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        t = jnp.asarray(count, jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        mu = optax.tree.cast(mu, mu_dtype)
        return updates, optax.ScaleByAdamState(jnp.asarray(count), mu, nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Gradients times min(1, max_norm / ‖g‖). Source: Pascanu et al. 2013, algorithm 1.

    optax's divides every entry by the norm, and XLA on a CPU keeps those quotients: one more pass
    over memory, and two of the optimiser's passes read one array more.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.OptState]:
        del params
        scale = max_norm / jnp.maximum(optax.tree.norm(updates), max_norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: all but norms, biases and embeddings.

    By name, because stacked layers give a bias two dimensions: a rule by rank would decay it.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _decays(path), params)


def _decays(path: Sequence[Any]) -> bool:
    names = [str(getattr(part, "key", getattr(part, "name", ""))).lower() for part in path]
    leaf = names[-1] if names else ""
    inside = any("norm" in name or "embed" in name for name in names)
    return not inside and leaf not in ("bias", "scale")
