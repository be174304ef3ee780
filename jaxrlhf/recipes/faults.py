"""Faults that the laboratory puts into a run on purpose, each at one named place.

No config field leads here and nothing that trains in earnest imports it: a run can be inverted by
editing the program, as in 2019, and in no other way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxrlhf.algorithms import ppo


@contextmanager
def net_signs(*, reward: int, kl: int) -> Iterator[None]:
    """In this block token rewards are `reward * score - kl * beta * KL`; +1 and +1 are right.

    The place is `algorithms.ppo.token_rewards`, which every PPO run calls. -1 and +1 are the net
    effect of what happened to OpenAI (Ziegler et al., 1909.08593, section 4.4).
    """
    right = ppo.token_rewards

    def refactored(rows, kl_coef, settings):
        turned = {**rows, "shaped_scores": reward * rows["shaped_scores"]}
        return right(turned, kl * kl_coef, settings)

    ppo.token_rewards = refactored
    try:
        yield
    finally:
        ppo.token_rewards = right
