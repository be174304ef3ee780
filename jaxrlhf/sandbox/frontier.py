"""The best that any policy could do: the exact trade of gold against KL in the bistro.

The policy that earns most of a reward R at a given distance from a base policy rho is the tilted
one,

    pi(y | x)  proportional to  rho(y | x) * exp(R(x, y) / beta),

with log Z = log E_rho[exp(R / beta)] and KL(pi || rho) = E_pi[R] / beta - log Z (the Gibbs
variational principle; derived at `frontier`). Texts of the bistro are a Markov chain, and gold
needs only the last word, the length so far and which pleasant words were said, so Z, E_pi[R] and
the KL follow by one backward sweep: no sampling, no learning. A trained policy's point in a
gold-against-KL plot lies under this line.

`frontier` can also tilt towards a *proxy*, gold with another repeat penalty, and measure gold: an
exact curve of over-optimisation, with no reward model and no optimiser to blame.

The base policy here is the world's own text generator, given the prompt. A trained base model is
close to it but not equal, so a policy's KL to *its* base is compared with this line, not derived
from it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxrlhf.sandbox.bistro import STOP, Bistro
from jaxrlhf.sandbox.protocol import Split


class Frontier(NamedTuple):
    """One entry for each strength: means over the prompts of a split, all exact."""

    kl: np.ndarray
    """Sequence KL(pi || base) in nats."""
    gold: np.ndarray
    """Mean gold of the tilted policy."""
    proxy: np.ndarray
    """Mean of what it was tilted towards; equals `gold` unless a proxy was asked for."""


def frontier(
    world: Bistro,
    strengths: Sequence[float],
    *,
    proxy_repeat_penalty: float | None = None,
    split: Split = "test",
) -> Frontier:
    """Gold against KL of the tilted policies with 1/beta in `strengths` (0 = the base policy).

    E_pi[R] - beta KL(pi || rho) = beta log Z - beta KL(pi || rho exp(R / beta) / Z), and the last
    term is at least 0 and is 0 for the tilted policy alone: no policy with the same mean KL has a
    larger mean R.

    Args:
        world: the bistro whose gold is measured.
        strengths: values of 1/beta, not negative.
        proxy_repeat_penalty: tilt towards gold with this repeat penalty instead of the world's own.
        split: whose prompts the means are over, weighted as texts begin.
    """
    penalty = world.repeat_penalty if proxy_repeat_penalty is None else proxy_repeat_penalty
    proxy_world = replace(world, repeat_penalty=penalty)
    openings, weights = world.openings(split)
    last_words = openings[:, -1]
    log_finish, _, _ = _sweep(world, proxy_world, 0.0)
    points = []
    for strength in strengths:
        log_z, proxy, gold = _sweep(world, proxy_world, strength)
        kl = strength * proxy - (log_z - log_finish)
        points.append([weights @ each[last_words] for each in (kl, gold, proxy)])
    return Frontier(*np.array(points).T)


def _sweep(
    world: Bistro, proxy_world: Bistro, strength: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log Z, E_pi[proxy] and E_pi[gold] of a response that starts after each word: [W] each.

    log Z is log E_rho[exp(strength * proxy) * (the text ends in time)]: texts without an end are
    drawn again (`bistro.py`), so they have weight 0 here. The state is (last word w, set s of
    pleasant words said so far) at a response length t; arrays are [W, S].
    """
    step = sparse.csr_array(world.grammar.probabilities)  # about eight entries a row
    stop = world.grammar.index[STOP]
    said_next = _said_next(world)
    proxy_pay, gold_pay = _pay(proxy_world), _pay(world)
    rows = np.arange(len(said_next))[:, None]

    # At the longest response every text that stands at a full stop has ended; the others never do.
    log_z = np.full(gold_pay.shape, -np.inf)
    log_z[stop] = 0.0
    proxy_to_go = gold_to_go = np.zeros(gold_pay.shape)
    for length in range(world.longest.response - 1, -1, -1):
        # Move to word w with said-set s: pay for the word, then what is still to come from there.
        move_log = strength * proxy_pay + log_z[rows, said_next]
        peak = move_log.max(axis=0)  # finite: a full stop may always follow some word
        move = np.exp(move_log - peak)
        total = step @ move
        reached = np.where(total > 0, total, 1.0)
        proxy_to_go = step @ (move * (proxy_pay + proxy_to_go[rows, said_next])) / reached
        gold_to_go = step @ (move * (gold_pay + gold_to_go[rows, said_next])) / reached
        log_z = np.where(total > 0, np.log(reached) + peak, -np.inf)  # -inf: no end within reach
        # After a full stop the text may also end here, with nothing more to pay.
        with np.errstate(divide="ignore"):  # log 0 = -inf is what is meant
            end, go_on = np.log([world.stop_chance(length), 1 - world.stop_chance(length)])
        log_total = np.logaddexp(end, go_on + log_z[stop])
        share_going_on = np.exp(go_on + log_z[stop] - log_total)
        log_z[stop] = log_total
        proxy_to_go[stop] *= share_going_on
        gold_to_go[stop] *= share_going_on
    return log_z[:, 0], proxy_to_go[:, 0], gold_to_go[:, 0]


def _pleasant_bits(world: Bistro) -> np.ndarray:
    """[W] int: 1 << k for the k-th pleasant word, 0 for the others."""
    pleasant = world.values > 0
    return np.where(pleasant, 1 << (pleasant.cumsum() - 1).clip(0), 0)


def _said_next(world: Bistro) -> np.ndarray:
    """[W, S] int: the said-set after saying word w in said-set s."""
    bits = _pleasant_bits(world)
    return np.arange(1 << np.count_nonzero(bits))[None, :] | bits[:, None]


def _pay(world: Bistro) -> np.ndarray:
    """[W, S]: what saying word w in said-set s adds to the reward."""
    bits = _pleasant_bits(world)
    again = (np.arange(1 << np.count_nonzero(bits))[None, :] & bits[:, None]) > 0
    return world.values[:, None] - world.repeat_penalty * again
