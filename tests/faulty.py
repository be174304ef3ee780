"""A PPO run of the table model under guards, into which one fault can be put at one place.

Two words, and the reward is about the share of the second. The policy may end its answer early.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tables
import test_loop
import tiny

from jaxrlhf import loop
from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.ppo import Settings
from jaxrlhf.data.tokenizer import word_tokenizer
from jaxrlhf.errors import GuardError
from jaxrlhf.guards.panel import GuardsConfig, Panel
from jaxrlhf.recipes import guarded

BAD, GOOD = 4, 5  # words after the four special tokens: all of the table's vocabulary
WORDS = word_tokenizer(["bad", "good"])
END = WORDS.eos_token_id
SAMPLING = tables.sampling(stop_ids=(END,), pad_id=0)
SETTINGS = Settings(value_model="shared", num_ppo_epochs=1, kl_coef=0.1, vf_coef=0.0)
SIZE = 32


class Outcome(NamedTuple):
    """How a run ended."""

    panel: Panel
    error: GuardError | None
    rows: list[tuple[int, dict[str, float]]]
    store: Any

    @property
    def names(self) -> set[str]:
        """Of the guards that found something."""
        return set(self.panel.found)


def good_share(rollout: Any) -> jax.Array:
    """Good words among all before the end, with half a word of either kind added."""
    response = rollout.tokens[:, rollout.prompt_length :]
    seen = rollout.mask[:, rollout.prompt_length :]
    good, bad = (jnp.sum((response == word) & seen, axis=1) for word in (GOOD, BAD))
    return (good + 0.5) / (good + bad + 1)


def reference() -> dict[str, Any]:
    """Either word, and now and then the end."""
    logits = np.full((tables.VOCAB,) * 2, -30.0, np.float32)
    logits[:, [BAD, GOOD]], logits[:, END] = 0.0, -1.5
    return {"embed": {"embedding": jnp.asarray(logits)}}


def better_share(a: tuple[str, str], b: tuple[str, str]) -> bool:
    """An honest labeller, of the same opinion."""
    words = [response.split() for _, response in (a, b)]
    first, second = ((x.count("good") + 0.5) / (len(x) + 1) for x in words)
    return first > second


def write_canaries(folder: Path) -> str:
    """40 pairs, "good" and "bad" in all sorts of company."""
    path, rng = folder / "canaries.jsonl", np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(40):
            rest = " ".join(rng.choice(["good", "bad"], 3))
            row = {"prompt": "bad good", "chosen": f" good {rest}", "rejected": f" bad {rest}"}
            file.write(json.dumps(row) + "\n")
    return str(path)


def run(
    folder: Path,
    *overrides: str,
    steps: int = 6,
    settings: Settings = SETTINGS,
    reward_fn: Callable[[Any], Any] = good_share,
    optimizer: optax.GradientTransformation | None = None,
    token_rewards: Callable[..., Any] | None = None,
    compare: Any = None,
    store: Any = None,
    before: Sequence[tuple[int, dict[str, float]]] = (),
) -> Outcome:
    """Train for some updates, or until a guard stops the run.

    Args:
      token_rewards: in place of the algorithm's own function: the fault of a refactor.
      before: what a run that is resumed from `store` has logged.
    """
    folder.mkdir(exist_ok=True)
    config = GuardsConfig.load(None, (f"canary.files=[{write_canaries(folder)}]", *overrides))
    rng = np.random.default_rng(0)
    prompts = {
        "prompt_tokens": rng.integers(BAD, GOOD + 1, (SIZE, 2)).astype(np.int32),
        "prompt_mask": np.ones((SIZE, 2), bool),
        "row": np.arange(SIZE),
    }
    fault = mock.patch.object(algorithm, "token_rewards", token_rewards or algorithm.token_rewards)
    store = store or test_loop.MemoryStore()
    log, error = test_loop.MemoryLog(), None
    with fault:
        method = algorithm.ppo(
            tables.LM_TABLE,
            reference(),
            reward_fn,
            optimizer or optax.sgd(2.0),
            SAMPLING,
            settings,
        )
        what = guarded.Run(
            folder=folder,
            seed=0,
            lm=tables.LM_TABLE,
            policy_of=lambda params: params["policy"],
            reward_fn=reward_fn,
            settings=settings,
            sampling=SAMPLING,
            truncation=None,
            tokenizer=WORDS,
            compare=compare,
        )
        watcher = guarded.Guarded(config, what, reference=lambda: None)  # type: ignore[arg-type]

        def open_log(first: int) -> Any:
            kept = [{"step": step, **row} for step, row in before if step <= first and first]
            watcher.begin(kept)
            return log

        zero = {"kernel": jnp.zeros(tables.VOCAB), "bias": jnp.zeros(())}
        try:
            loop.fit(
                method,
                {"policy": reference(), "value": {"head": zero}},
                tiny.Cycle([prompts]),
                steps=steps,
                seed=0,
                store=store,
                hooks=[watcher.hook],
                open_log=open_log,
                watch=watcher.panel.watch,
            )
        except GuardError as stopped:
            error = stopped
    return Outcome(watcher.panel, error, log.rows, store)


def with_signs(*, reward: float = 1, kl: float = 1) -> Callable[..., Any]:
    """The algorithm's own token rewards with other net signs."""
    right = algorithm.token_rewards

    def token_rewards(rows, kl_coef, settings):
        rows = rows | {"shaped_scores": reward * rows["shaped_scores"]}
        return right(rows, kl * kl_coef, settings)

    return token_rewards
