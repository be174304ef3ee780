"""What revisions do, by round and by principle; policies against each other, and at equal KL.

Takes rows of `constitutional.critique` and arrays, returns numbers; deliberately no models and no
files. How good a text is, the caller's `Measure` says.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Measure = Callable[[Sequence[str], Sequence[str]], Mapping[str, np.ndarray]]
"""`(prompts, responses) -> columns` [N] by name."""


class PrincipleEffect(NamedTuple):
    """What the revisions under one principle did to one column."""

    principle: str
    revisions: int
    changed: float
    """Share of them in which the text is another one."""
    before: float
    after: float
    """Means of the column."""


def by_round(chains: Sequence[Mapping[str, Any]], measure: Measure) -> dict[str, np.ndarray]:
    """Columns `[rounds + 1, N]` of the N chains that were not discarded; row 0 is the response.

    Raises:
      ValueError: every chain was discarded.
    """
    kept = _kept(chains)
    prompts = [str(chain["prompt"]) for chain in kept]
    rounds = range(len(kept[0]["revisions"]) + 1)
    measured = [measure(prompts, [text(chain, n) for chain in kept]) for n in rounds]
    return {name: np.stack([columns[name] for columns in measured]) for name in measured[0]}


def by_principle(
    chains: Sequence[Mapping[str, Any]], columns: Mapping[str, np.ndarray], name: str
) -> list[PrincipleEffect]:
    """The effect of every principle on the column `name` of `by_round`, in alphabetical order."""
    kept, values = _kept(chains), columns[name]
    found: dict[str, list[tuple[bool, float, float]]] = {}
    for i, chain in enumerate(kept):
        for n, revision in enumerate(chain["revisions"]):
            changed = revision["revision"] != text(chain, n)
            row = changed, values[n, i], values[n + 1, i]
            found.setdefault(revision["principle"], []).append(row)
    return [
        PrincipleEffect(principle, len(rows), *np.mean(np.array(rows, float), axis=0).tolist())
        for principle, rows in sorted(found.items())
    ]


def text(chain: Mapping[str, Any], n: int) -> str:
    """The text of a chain after n revisions."""
    return chain["response"] if n == 0 else chain["revisions"][n - 1]["revision"]


def round_robin(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Wins `[P, P]` of players with scores `[N]` on the same N prompts; a tie is half a win."""
    table = np.stack(list(scores.values()))
    ahead = table[:, None, :] - table[None, :, :]
    wins = (ahead > 0).sum(axis=2) + 0.5 * (ahead == 0).sum(axis=2)
    np.fill_diagonal(wins, 0)
    return wins


def at_kl(kl: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """A run's value where its KL was `target` last, between its evaluations; None: it never was.

    The last time, because PPO may overshoot at first: on the way back it has learnt more.

    >>> at_kl([0.0, 2.0, 1.0], [3.0, 1.0, 0.0], 1.5)
    0.5
    """
    for i in range(len(kl) - 1, 0, -1):
        a, b = kl[i - 1], kl[i]
        if min(a, b) <= target <= max(a, b):
            share = 1.0 if a == b else (target - a) / (b - a)
            return float(values[i - 1] + share * (values[i] - values[i - 1]))
    return None


def _kept(chains: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kept = [chain for chain in chains if not chain["discarded"]]
    if not kept:
        raise ValueError("every chain was discarded")
    return kept
