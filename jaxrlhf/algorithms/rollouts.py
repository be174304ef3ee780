"""What on-policy methods share: what the reward sees of a response, and how scores are delivered.

Pure functions of a rollout batch; no method's loss is here.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf import packing, reading
from jaxrlhf.inference import Generation
from jaxrlhf.losses import masked
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.sampling import Sampling

Array = jax.Array


class Truncation(NamedTuple):
    """Cut responses at the first of `token_ids` at or after position `after`, for the reward."""

    token_ids: tuple[int, ...]
    after: int = 0


def check_sampling(sampling: Sampling) -> None:
    """Refuse to train on a distribution other than the one that is scored."""
    if sampling.temperature <= 0:
        raise ValueError(f"temperature {sampling.temperature}: PPO must sample; raise it")
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
        raise ValueError(
            f"top_k {sampling.top_k}, top_p {sampling.top_p}, min_p {sampling.min_p}: PPO scores "
            "the full distribution, so it must sample from it; use top_k 0, top_p 1, min_p 0"
        )
    if not sampling.unfiltered:
        raise ValueError(
            f"min_new_tokens {sampling.min_new_tokens}: PPO scores the full distribution, in which "
            "the stop token is never forbidden; use 0 (truncation.after shows the reward more)"
        )


def visible(rollout: Generation, truncation: Truncation | None) -> tuple[Array, Array]:
    """What the reward may see, and which responses are complete.

    Returns:
      mask `[B, P+N]` up to and including the first truncation token (all that was sampled when
      there is no truncation), and `[B]` bool: a stop or truncation token was there.
    """
    if truncation is None:
        return rollout.mask, rollout.finished
    length = rollout.log_probs.shape[1]
    tokens, mask = rollout.tokens[:, -length:], rollout.mask[:, -length:]
    stops = jnp.isin(tokens, jnp.asarray(truncation.token_ids)) & mask
    stops = stops & (jnp.arange(length) >= truncation.after)[None, :]
    before = jnp.cumsum(stops, axis=1) - stops  # stop tokens strictly before each position
    seen = mask & (before == 0)
    prompt = rollout.mask[:, : rollout.prompt_length]
    return jnp.concatenate([prompt, seen], axis=1), jnp.any(stops, axis=1)


def dealt(
    rollout: Generation, rows: np.ndarray, *, groups: Sequence[int], like: Array
) -> tuple[Generation, np.ndarray]:
    """Rollouts in an order in which packed groups hold about as many tokens (`packing.deal`).

    Args:
      rows: `[B]`, what else is known of them, put into the same order.
      groups: minibatches, and micro-batches of each.
      like: an array whose rows lie on devices as those of the rollouts are to.
    """
    lengths = np.asarray(rollout.mask).sum(axis=1)
    order = packing.deal(lengths, groups=groups, shards=reading.shards(like))
    moved = jax.tree.map(lambda x: reading.placed(np.asarray(x)[order], like), rollout)
    return moved, rows[order]


def packed(
    rollout: Generation, *, configs: Sequence[TransformerConfig], groups: int = 1
) -> packing.Packed:
    """Rollouts without padding, for models of these configs that are asked about responses."""
    response = np.array(rollout.mask)
    response[:, : rollout.prompt_length] = False
    tokens, mask = rollout.tokens, rollout.mask
    return reading.pack(tokens, mask, response, like=tokens, configs=configs, groups=groups)


def shape_scores(
    extra: dict[str, Array],
    scores: Array,
    complete: Array,
    *,
    normalize: bool,
    clip: float | None,
    missing_eos_penalty: float | None,
    missing_eos_rule: Literal["replace", "subtract"],
) -> tuple[dict[str, Array], Array, dict[str, Array]]:
    """Scores as they are delivered: running standardisation, clipping, the missing-EOS rule.

    Args:
      extra: algorithm state; holds the running moments when `normalize`.
      scores: `[B]` raw scores.
      complete: `[B]` bool, the response has a stop token.
    Returns:
      New extra, delivered scores `[B]`, metrics.
    """
    scores, metrics = scores.astype(jnp.float32), {}
    if normalize:
        extra = extra | running_moments(extra, scores)
        std = jnp.sqrt(extra["score_m2"] / jnp.maximum(extra["score_count"], 1.0))
        gain = 1.0 / jnp.maximum(std, 1e-6)
        scores = (scores - extra["score_mean"]) * gain
        metrics["objective/score_gain"] = gain
    if clip is not None:
        scores = jnp.clip(scores, -clip, clip)
    if missing_eos_penalty is not None:
        penalty = jnp.float32(missing_eos_penalty)
        missed = penalty if missing_eos_rule == "replace" else scores - penalty
        scores = jnp.where(complete, scores, missed)
    return extra, scores, metrics


def running_moments(extra, scores):
    """Count, mean and sum of squared deviations after one more batch (Chan et al. 1979)."""
    n, seen = jnp.float32(scores.shape[0]), extra["score_count"]
    delta = jnp.mean(scores) - extra["score_mean"]
    total = seen + n
    return {
        "score_count": total,
        "score_mean": extra["score_mean"] + delta * n / total,
        "score_m2": extra["score_m2"]
        + jnp.sum((scores - jnp.mean(scores)) ** 2)
        + delta**2 * seen * n / total,
    }


def repetition(tokens, mask) -> Array:
    """Share of response tokens that already stand earlier in the same response."""
    same = (tokens[:, :, None] == tokens[:, None, :]) & mask[:, None, :]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), k=-1)[None]
    return masked.mean(jnp.any(same & earlier, axis=2).astype(jnp.float32), mask)
