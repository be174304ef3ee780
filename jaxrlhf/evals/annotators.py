"""Annotators who err: how far they agree, how reliable each is, and what the labels are worth.

N labels say: annotator a gave item i the class c. Two models of how they come about, both Dawid and
Skene's (1979): a true class per item, and a confusion matrix P(said | true). `alike` gives all
annotators one matrix, so that an item's most likely class is the majority's; `apart` gives each
their own. The second finds experts and adversaries, but where annotators are alike it has nothing
to find and fits noise: `choose` predicts labels that neither model has seen, and takes `apart` only
where that predicts better. Either way an item ends up with a probability for every class.

Agreement (raw, Cohen, Fleiss, Krippendorff) needs no model. `competence` is the same idea for
Bradley-Terry (crowd-BT, Chen et al. 2013), where a pair is judged by few and players recur.

Takes arrays of numbers and returns numbers; deliberately no files, names or tables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from jaxrlhf.evals.statistics import Interval, wilson

STEPS, CONVERGED = 300, 1e-6  # of EM: the change of the log-likelihood, a label
ADDED = 1.0  # pseudo-counts of every cell of a confusion matrix, as in a uniform Dirichlet prior
FOLDS = 5


class Labels(NamedTuple):
    """Who said what of what; an annotator labels an item once."""

    items: np.ndarray
    """[N] item, 0 to I − 1."""
    annotators: np.ndarray
    """[N] annotator, 0 to A − 1."""
    classes: np.ndarray
    """[N] class, 0 to C − 1."""
    shape: tuple[int, int, int]
    """I, A, C."""


class Consensus(NamedTuple):
    """What a model of annotators makes of their labels."""

    posterior: np.ndarray
    """[I, C] probability of every class; of items without labels, the prior."""
    confusion: np.ndarray
    """[A, C, C] P(says the column's class | it is the row's)."""
    prior: np.ndarray
    """[C] share of every class."""


class Choice(NamedTuple):
    """Which model predicts unseen labels better."""

    apart: bool
    gain: Interval
    """Nats a label by which `apart` predicts held-out labels better than `alike`, 95 % interval
    over items."""


def labels(items: ArrayLike, annotators: ArrayLike, classes: ArrayLike, *, shape) -> Labels:
    """Checked `Labels`; `shape` is (I, A, C).

    Raises:
      ValueError: numbers out of range, unequal lengths, or an annotator who labels an item twice.
    """
    columns = [np.asarray(x, np.int64) for x in (items, annotators, classes)]
    for x, size, what in zip(columns, shape, ("items", "annotators", "classes"), strict=True):
        if x.shape != columns[0].shape or not len(x) or x.min() < 0 or x.max() >= size:
            raise ValueError(f"{what} must be numbers from 0 to {size - 1}, one a label")
    if len(np.unique(columns[0] * shape[1] + columns[1])) < len(columns[0]):
        raise ValueError("an annotator labelled an item twice")
    return Labels(columns[0], columns[1], columns[2], tuple(shape))


# Agreement.


def raw_agreement(found: Labels) -> float:
    """Share of equal labels among all two labels of one item, from different annotators; NaN if
    no item has two."""
    votes = _votes(found)
    count = votes.sum(axis=1)
    equal, pairs = (votes * (votes - 1)).sum(), (count * (count - 1)).sum()
    return float(equal / pairs) if pairs else float("nan")


def cohen_kappa(found: Labels, a: int, b: int) -> float:
    """(p_o − p_e)/(1 − p_e) of annotators a and b on the items that both labelled (Cohen 1960).

    NaN where they share no item, or always say the same one class.
    """
    table = np.full(found.shape[:2], -1)
    table[found.items, found.annotators] = found.classes
    one, other = table[:, a], table[:, b]
    both = (one >= 0) & (other >= 0)
    counts = np.zeros((found.shape[2],) * 2)
    np.add.at(counts, (one[both], other[both]), 1.0)
    if not both.any():
        return float("nan")
    counts /= counts.sum()
    chance = float(counts.sum(axis=0) @ counts.sum(axis=1))
    return _above_chance(float(np.trace(counts)), chance)


def fleiss_kappa(found: Labels) -> float:
    """Kappa of many annotators (Fleiss 1971): the mean agreement of items, above that of chance.

    Items need not have equally many labels; those with fewer than two are left out. NaN where all
    labels are one class.
    """
    votes = _votes(found)
    votes = votes[votes.sum(axis=1) > 1]
    if not len(votes):
        return float("nan")
    count = votes.sum(axis=1)
    agreement = (votes * (votes - 1)).sum(axis=1) / (count * (count - 1))
    share = votes.sum(axis=0) / votes.sum()
    return _above_chance(float(agreement.mean()), float(share @ share))


def krippendorff_alpha(found: Labels, *, values: ArrayLike | None = None) -> float:
    """1 − observed/expected disagreement of pairs of labels (Krippendorff 2011).

    `values` [C]: what the classes measure, for the squared distance of the interval metric (the
    strength of a preference); None: nominal. NaN where all labels are one class.
    """
    votes = _votes(found)
    count = votes.sum(axis=1)
    votes, count = votes[count > 1], count[count > 1]
    weighted = votes / (count - 1)[:, None]
    met = weighted.T @ votes - np.diag(weighted.sum(axis=0))  # pairs of labels, by class
    total = met.sum(axis=0)
    if values is None:
        distance = 1.0 - np.eye(len(total))
    else:
        values = np.asarray(values, np.float64)
        distance = np.square(values[:, None] - values[None, :])
    expected = total @ distance @ total / max(total.sum() - 1, 1)
    return float(1 - (met * distance).sum() / expected) if expected > 0 else float("nan")


# True classes.


def majority(found: Labels) -> np.ndarray:
    """[I, C] shares of the votes: 1 at the class of most labels, or equal shares of those tied."""
    votes = _votes(found)
    most = votes == votes.max(axis=1, keepdims=True)
    return most / most.sum(axis=1, keepdims=True)


def consensus(found: Labels, *, apart: bool) -> Consensus:
    """True classes by EM (Dawid and Skene 1979), begun at the shares of votes.

    Args: `apart`: a confusion matrix for each annotator; otherwise one for all. Its cells get
    a pseudo-count of 1, and the diagonal as many more as there are other classes: annotators are
    taken to be better than chance until their labels say otherwise.
    """
    votes = _votes(found) + 1e-9
    posterior = votes / votes.sum(axis=1, keepdims=True)
    before = -np.inf
    for _ in range(STEPS):
        confusion, prior = _maximise(found, posterior, apart=apart)
        posterior, likelihood = _expect(found, confusion, prior)
        if abs(likelihood - before) < CONVERGED * len(found.items):
            break
        before = likelihood
    return Consensus(posterior, confusion, prior)


def choose(found: Labels, *, seed: int) -> Choice:
    """Whether to tell annotators apart: by the log-likelihood of labels held out, in `FOLDS` folds.

    A held-out label is predicted from the item's other labels and the annotator's other items, so
    only items with two labels count; without any, the gain is 0 and knows no bounds. `apart` has to
    win by more than its error: the lower end of the interval above 0.
    """
    shared = _shared(found)
    if not shared.any():
        return Choice(False, Interval(0.0, -np.inf, np.inf))
    rng = np.random.default_rng(seed)
    fold = rng.permutation(np.arange(len(found.items)) % FOLDS)
    gain = np.zeros(len(found.items))
    for held_out in range(FOLDS):
        seen, unseen = (_take(found, fold != held_out), _take(found, fold == held_out))
        one, other = (_log_prediction(consensus(seen, apart=x), unseen) for x in (True, False))
        gain[fold == held_out] = one - other
    gain, items = gain[shared], found.items[shared]
    # Labels of an item share its fate: the error of the mean is that of its items' sums.
    sums = np.bincount(items, weights=gain - gain.mean())
    error = float(np.sqrt(np.square(sums).sum()) / len(gain))
    mean = float(gain.mean())
    return Choice(mean - 1.96 * error > 0, Interval(mean, mean - 1.96 * error, mean + 1.96 * error))


def reliability(found: Labels, made: Consensus) -> list[Interval]:
    """For each annotator, the chance to say the true class, its interval Wilson's.

    The share of an annotator's labels that the consensus takes to be true, of items that somebody
    else labelled too; NaN without any. An interval below 1/C is that of an adversary, who knows the
    answer and says another.
    """
    right, kept = made.posterior[found.items, found.classes], _shared(found)
    return shares(right[kept], found.annotators[kept], people=found.shape[1])


# Competence of annotators in Bradley-Terry.


class Competence(NamedTuple):
    """What crowd-BT finds."""

    ratings: np.ndarray
    """[P] nats, mean 0."""
    competence: np.ndarray
    """[A] η: 1 always means what is said, 1/2 says nothing, 0 means the opposite."""


def competence(
    first: ArrayLike,
    second: ArrayLike,
    first_won: ArrayLike,
    annotators: ArrayLike,
    *,
    shape: Sequence[int],
    prior: float,
) -> Competence:
    """argmax of Σ log(η_a·σ(d) + (1 − η_a)·σ(−d)), d = r_winner − r_loser: crowd-BT.

    Args:
      first, second: [N] players. first_won: [N] bool. annotators: [N].
      shape: P players and A annotators.
      prior: precision of a Gaussian around 0 of the ratings, 1/nats². η has a Beta(3, 1.5) prior,
        which is what says that most annotators mean what they say: all turned round and all ratings
        turned round is the same likelihood.
    Source: Chen et al. 2013, eq. 5.
    """
    first, second, annotators = (np.asarray(x, np.int64) for x in (first, second, annotators))
    sign = np.where(np.asarray(first_won, bool), 1.0, -1.0)
    players, people = shape

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        r, eta = at[:players], special.expit(at[players:])
        p = special.expit(sign * (r[first] - r[second]))
        chance = eta[annotators] * p + (1 - eta[annotators]) * (1 - p)
        value = -np.log(chance).sum() + prior / 2 * r @ r
        value -= np.sum(2.0 * np.log(eta) + 0.5 * np.log1p(-eta))
        along = -(2 * eta[annotators] - 1) * p * (1 - p) * sign / chance
        slope_r = (
            prior * r + np.bincount(first, along, players) - np.bincount(second, along, players)
        )
        by_eta = np.bincount(annotators, -(2 * p - 1) / chance, people)
        slope_eta = by_eta * eta * (1 - eta) - (2.0 * (1 - eta) - 0.5 * eta)
        return float(value), np.concatenate([slope_r, slope_eta])

    begin = np.concatenate([np.zeros(players), np.full(people, 1.0)])
    options = {"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-8}
    best = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options=options).x
    ratings = best[:players]
    return Competence(ratings - ratings.mean(), special.expit(best[players:]))


# Biases.


def shares(happened: ArrayLike, annotators: ArrayLike, *, people: int) -> list[Interval]:
    """For each annotator, how often something happened, with Wilson's interval.

    Args: `happened` [N], from 0 to 1 (bool, or a probability); `annotators` [N]. Of the preference
    for what stood first: 1/2 is no bias, where orders were drawn at random. Of the preference for
    the longer answer: no bias is what the consensus says of the same pairs.
    """
    annotators = np.asarray(annotators, np.int64)
    sums = np.bincount(annotators, weights=np.asarray(happened, np.float64), minlength=people)
    counts = np.bincount(annotators, minlength=people)
    return [
        wilson(min(float(x), float(n)), float(n)) if n else Interval(float("nan"), 0.0, 1.0)
        for x, n in zip(sums, counts, strict=True)
    ]


def _votes(found: Labels) -> np.ndarray:
    """[I, C] labels of every class."""
    votes = np.zeros((found.shape[0], found.shape[2]))
    np.add.at(votes, (found.items, found.classes), 1.0)
    return votes


def _shared(found: Labels) -> np.ndarray:
    """[N] whether the item has another label, too."""
    return np.bincount(found.items)[found.items] > 1


def _maximise(
    found: Labels, posterior: np.ndarray, *, apart: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrices [A, C, C] and shares of classes [C] of the most likely kind."""
    _, people, classes = found.shape
    counts = np.zeros((people, classes, classes))
    np.add.at(counts.transpose(0, 2, 1), (found.annotators, found.classes), posterior[found.items])
    if not apart:
        counts = np.broadcast_to(counts.sum(axis=0), counts.shape)
    counts = counts + ADDED + ADDED * (classes - 1) * np.eye(classes)
    prior = posterior.sum(axis=0) + ADDED
    return counts / counts.sum(axis=2, keepdims=True), prior / prior.sum()


def _expect(found: Labels, confusion: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior [I, C] and the log-likelihood."""
    logs = np.tile(np.log(prior), (found.shape[0], 1))
    said = np.log(confusion)[found.annotators, :, found.classes]  # [N, C] by true class
    np.add.at(logs, found.items, said)
    total = special.logsumexp(logs, axis=1, keepdims=True)
    return np.exp(logs - total), float(total.sum())


def _log_prediction(made: Consensus, unseen: Labels) -> np.ndarray:
    """[M] log P(label) of labels that the consensus was not made of."""
    said = made.confusion[unseen.annotators, :, unseen.classes]
    return np.log(np.sum(made.posterior[unseen.items] * said, axis=1))


def _take(found: Labels, keep: np.ndarray) -> Labels:
    return Labels(found.items[keep], found.annotators[keep], found.classes[keep], found.shape)


def _above_chance(observed: float, chance: float) -> float:
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")
