"""The exact frontier: against simulation, against its own identities, and as a promise."""

from functools import cached_property

import numpy as np
import pytest

from jaxrlhf.sandbox.bistro import Bistro
from jaxrlhf.sandbox.frontier import frontier

WORLD = Bistro()
STRENGTHS = (0.0, 0.1, 0.3, 1.0, 3.0)


@pytest.fixture(scope="module")
def texts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Last prompt word, gold and length of ordinary texts (which begin with train prompts)."""
    rows = WORLD.demonstrations(20_000, seed=0)
    last = np.array([WORLD.grammar.encode(row["prompt"])[-1] for row in rows])
    judged = [WORLD.gold(row["prompt"], row["completion"]) for row in rows]
    gold, length = (np.array([told[key] for told in judged]) for key in ("gold", "length"))
    return last, gold, length


def test_strength_0_is_the_base(texts):
    _, gold, _ = texts
    base = frontier(WORLD, [0.0], split="train")
    assert base.kl[0] == pytest.approx(0.0, abs=1e-12)
    # Four standard errors of the simulated mean: 4 * 2.6 / sqrt(20,000) = .074.
    assert base.gold[0] == pytest.approx(gold.mean(), abs=0.075)


def test_the_length_of_a_text_is_modelled_exactly(texts):
    # If every word is worth -1, gold is minus the length of the response.
    class Toll(Bistro):
        @cached_property
        def values(self) -> np.ndarray:
            return -np.ones(len(self.words()))

    lengths = texts[2]
    # Four standard errors: 4 * 4.4 / sqrt(20,000) = .12.
    assert -frontier(Toll(), [0.0], split="train").gold[0] == pytest.approx(
        lengths.mean(), abs=0.12
    )


@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_tilting_agrees_with_reweighted_texts(texts, strength):
    # Importance sampling per last prompt word: pi's mean of gold is sum(w gold) / sum(w) with
    # w = exp(strength * gold), and log Z is log mean(w). Tolerance: with 20,000 texts and an
    # effective share above one third the standard error is below 2.6 / sqrt(6,000) = .034.
    last, gold, _ = texts
    openings, weights = WORLD.openings("train")
    expected_gold = expected_kl = 0.0
    for word in np.unique(last):
        prompt_weight = weights[openings[:, -1] == word].sum()
        here = gold[last == word]
        tilt = np.exp(strength * here)
        tilted_mean = (tilt * here).sum() / tilt.sum()
        expected_gold += prompt_weight * tilted_mean
        expected_kl += prompt_weight * (strength * tilted_mean - np.log(tilt.mean()))
    exact = frontier(WORLD, [strength], split="train")
    assert exact.gold[0] == pytest.approx(expected_gold, abs=0.14)
    assert exact.kl[0] == pytest.approx(expected_kl, abs=0.05)


def test_kl_and_reward_obey_their_identity():
    # KL(b) = b E_b - log Z(b) and d log Z / db = E_b, so dKL/db = b dE/db for any rewards at all.
    h, b = 1e-4, 0.7
    near = frontier(WORLD, [b - h, b + h], proxy_repeat_penalty=0.3)
    kl_slope, reward_slope = np.diff(near.kl)[0] / (2 * h), np.diff(near.proxy)[0] / (2 * h)
    assert kl_slope == pytest.approx(b * reward_slope, rel=1e-5)


def test_more_strength_is_more_kl_and_more_reward():
    exact = frontier(WORLD, STRENGTHS)
    assert (np.diff(exact.kl) > 0).all() and (np.diff(exact.gold) > 0).all()
    np.testing.assert_array_equal(exact.gold, exact.proxy)


def test_a_trainer_has_room_and_a_careless_one_falls():
    spread = 2.6  # standard deviation of gold in ordinary texts (test_bistro)
    # With the truth: 2 spreads within 4 nats and 2.5 within 8.
    best = frontier(WORLD, [0.0, 1.5, 2.0])
    assert best.kl[1] < 4.0 and best.gold[1] > best.gold[0] + 2.0 * spread
    assert best.kl[2] < 8.0 and best.gold[2] > best.gold[0] + 2.5 * spread
    # With a reward that has never heard of repeats: 1.5 spreads within 4 nats are still there,
    # and then the proxy goes on rising while gold turns back.
    blind = frontier(WORLD, [0.0, 1.0, 2.0, 8.0], proxy_repeat_penalty=0.0)
    assert blind.kl[1] < 4.0 and blind.gold[1] > blind.gold[0] + 1.5 * spread
    assert blind.gold[3] < blind.gold[2] - 0.5 * spread
    assert blind.proxy[3] > blind.proxy[2] + 1.0 * spread


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_no_other_policy_does_better_at_its_price(strength):
    # The tilted policy maximises E[gold] - KL / strength over all policies; here are three others.
    best = frontier(WORLD, [strength])
    others = frontier(WORLD, [0.2, 0.7, 1.5], proxy_repeat_penalty=0.0)
    assert (best.gold - best.kl / strength > others.gold - others.kl / strength).all()


def test_great_strength_does_not_overflow():
    extreme = frontier(WORLD, [100.0])
    assert np.isfinite(extreme).all()
    # All ten pleasant words, each once, and nothing unpleasant: no text is worth more.
    assert extreme.gold[0] == pytest.approx(10.0, abs=0.1)
