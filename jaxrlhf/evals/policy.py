"""What a policy does on held-out prompts: one response each, scored, judged, and its KL measured.

The KL is exact along the sampled prefixes (summed over the vocabulary at every token), whose mean
is an unbiased estimate of the sequence KL with far less variance than log-ratios of the samples.
A judge is optional: a program in the sandbox, a classifier on real text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf import inference, rewards
from jaxrlhf.models import LM
from jaxrlhf.sampling import Sampling

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[Mapping[str, float]]]
"""`(prompts, responses) -> rows` of named figures; the total is called "gold", higher is better."""


class PolicyEvaluation(NamedTuple):
    """One row a prompt; `columns` are arrays `[B]` by name."""

    prompts: list[str]
    responses: list[str]
    columns: dict[str, np.ndarray]

    def means(self, prefix: str = "eval/") -> dict[str, float]:
        """Mean of every column."""
        return {prefix + name: float(np.mean(x)) for name, x in self.columns.items()}

    def rows(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Some rows, as dicts for a table."""
        return [
            {"prompt": self.prompts[i], "completion": self.responses[i]}
            | {name: float(x[i]) for name, x in self.columns.items()}
            for i in indices
        ]


def evaluate_policy(
    lm: LM,
    params: Any,
    reference_params: Any,
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    sampling: Sampling,
    key: jax.Array,
    decode: Callable[[Sequence[int]], str],
    reward_fn: rewards.RewardFn | None = None,
    judge: Judge | None = None,
) -> PolicyEvaluation:
    """Sample and measure.

    Args:
      batches: prompts, each `prompt_tokens` `[b, P]`, `prompt_mask`, `row` `[b]`.
      key: the same key gives the same random numbers: two policies can be compared in pairs.
      decode: token ids -> text without special tokens.
      reward_fn: gives column `score`.
      judge: gives columns of its own, `gold` among them.
    Returns:
      Columns `kl` (nats a sequence), `length`, `complete`, and those of reward and judge.
    """
    prompts: list[str] = []
    responses: list[str] = []
    columns: dict[str, list[np.ndarray]] = {}
    for number, batch in enumerate(batches):
        size = len(batch["prompt_tokens"])
        keys = jax.random.split(jax.random.fold_in(key, number), size)
        rollout = inference.generate(
            lm, params, batch["prompt_tokens"], batch["prompt_mask"], keys, sampling
        )
        kl = inference.exact_kl(
            lm,
            params,
            reference_params,
            rollout.tokens,
            rollout.mask,
            response_length=sampling.max_new_tokens,
            temperature=sampling.temperature,
        )
        view = rewards.Rollout(rollout.tokens, rollout.mask, rollout.prompt_length, batch["row"])
        some_prompts, some_responses = rewards.texts(view, decode)
        prompts += some_prompts
        responses += some_responses
        found = {
            "kl": np.asarray(kl).sum(axis=1),
            "length": np.asarray(rollout.response_mask).sum(axis=1),
            "complete": np.asarray(rollout.finished).astype(np.float32),
        }
        if reward_fn:
            found["score"] = np.asarray(rewards.as_scores(reward_fn(view), batch_size=size))
        if judge:
            judged = judge(some_prompts, some_responses)
            found |= {
                name: np.asarray([row[name] for row in judged])
                for name in judged[0]
                if name not in found
            }
        for name, x in found.items():
            columns.setdefault(name, []).append(x)
    return PolicyEvaluation(
        prompts, responses, {name: np.concatenate(parts) for name, parts in columns.items()}
    )


def lowest_and_random(scores: np.ndarray, *, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """Rows for a completions table: the `count` lowest scores, and as many at random."""
    lowest = np.argsort(scores, kind="stable")[:count]
    drawn = np.random.default_rng(seed).permutation(len(scores))[:count]
    return [(int(i), "lowest") for i in lowest] + [(int(i), "random") for i in drawn]
