"""What a policy is rewarded for: any callable from rollouts to one score per sequence.

A reward sees the rollout as the reward model should (after truncation). Scores become float32
here, at the boundary, whatever the callable returns: a 0.7 stays 0.7. Nothing here shapes or
normalises scores; that is the algorithm's, in sight.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf import inference, reading
from jaxrlhf.errors import NonFiniteError, UserError
from jaxrlhf.models.heads import ScalarModel
from jaxrlhf.packing import Packing


class Rollout(NamedTuple):
    """Prompts and responses, responses starting at the same column in every row."""

    tokens: jax.Array  # [B, P+N] int32
    mask: jax.Array  # [B, P+N] bool: prompt tokens, and response tokens that the reward may see
    prompt_length: int  # P
    rows: np.ndarray | None = None  # [B] int: which prompt of the data set each row is


RewardFn = Callable[[Rollout], Any]
"""`rollout -> [B]` scores, higher is better; arrays, numpy, ints or bools are all welcome."""


def as_scores(scores: Any, *, batch_size: int) -> jax.Array:
    """Float32 scores `[B]` from whatever a reward returned.

    Raises:
      UserError: not one number a sequence.
      NonFiniteError: a score is NaN or infinite.
    """
    scores = jnp.asarray(scores)
    if scores.shape != (batch_size,):
        raise UserError(
            f"a reward must return one score a sequence: shape ({batch_size},), got {scores.shape}"
        )
    scores = scores.astype(jnp.float32)
    finite = np.isfinite(np.asarray(scores))
    if not finite.all():
        row = int(np.argmin(finite))
        raise NonFiniteError(
            f"the reward of row {row} is {float(scores[row])}, not a finite number"
        )
    return scores


def from_model(model: ScalarModel, params: Any, *, packing: Packing = "none") -> RewardFn:
    """The score of a reward model at the last visible token; the same with `packing`, sooner."""

    def score(rollout: Rollout) -> jax.Array:
        tokens, mask = rollout.tokens, rollout.mask
        packed = None
        if packing == "packed":
            packed = reading.pack(tokens, mask, mask, like=tokens, configs=[model.config])
        return inference.reward_scores(model, params, tokens, mask, packed=packed)

    return score


def from_text(
    fn: Callable[..., Sequence[float]],
    decode: Callable[[Sequence[int]], str],
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> RewardFn:
    """A rule on text as a reward, called as TRL calls one: `fn(prompts=, completions=, **columns)`.

    Args:
      fn: returns one number per completion.
      decode: token ids -> text, special tokens left out.
      columns: further data-set columns, looked up by the rollout's row numbers.
    """
    columns = columns or {}

    def score(rollout: Rollout) -> list[float]:
        prompts, completions = texts(rollout, decode)
        chosen = (
            {}
            if rollout.rows is None
            else {
                name: [values[i] for i in np.asarray(rollout.rows)]
                for name, values in columns.items()
            }
        )
        return list(fn(prompts=prompts, completions=completions, **chosen))

    return score


def weighted_sum(parts: Sequence[tuple[RewardFn, float]]) -> RewardFn:
    """Sum of rewards times weights."""

    def score(rollout: Rollout) -> jax.Array:
        size = rollout.tokens.shape[0]
        scores = [weight * as_scores(fn(rollout), batch_size=size) for fn, weight in parts]
        return jnp.sum(jnp.stack(scores), axis=0)

    return score


def ensemble(members: Sequence[RewardFn], *, rule: str = "mean", penalty: float = 0.0) -> RewardFn:
    """Several rewards as one: `mean`, `min` (worst case), or `uncertainty` = mean - penalty * var.

    Source: Coste et al. 2023 (arXiv 2310.02743), worst-case and uncertainty-weighted optimisation.
    """
    rules = {
        "mean": lambda s: s.mean(0),
        "min": lambda s: s.min(0),
        "uncertainty": lambda s: s.mean(0) - penalty * s.var(0),
    }
    if rule not in rules:
        raise ValueError(f"ensemble rule {rule!r}: choose one of {', '.join(rules)}")

    def score(rollout: Rollout) -> jax.Array:
        size = rollout.tokens.shape[0]
        return rules[rule](jnp.stack([as_scores(fn(rollout), batch_size=size) for fn in members]))

    return score


def texts(rollout: Rollout, decode: Callable[[Sequence[int]], str]) -> tuple[list[str], list[str]]:
    """Prompts and completions of a rollout as text."""
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    split = rollout.prompt_length

    def read(columns: slice) -> list[str]:
        return [
            decode(row[keep].tolist())
            for row, keep in zip(tokens[:, columns], mask[:, columns], strict=True)
        ]

    return read(slice(0, split)), read(slice(split, None))
