"""Annotators: agreement by hand and by other people's code, crowds whose truth is known."""

import json

import numpy as np
import pytest
from realdata import shared_data
from scipy import special

from jaxrlhf.data import sources
from jaxrlhf.evals import annotators
from jaxrlhf.evals.annotators import Labels

# Four annotators, twelve units, five values; None: not labelled. Krippendorff (2011), section E:
# alpha is .743 nominal and .849 interval.
TEXTBOOK = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def of(table, classes: int) -> Labels:
    """Labels of rows of annotators; None is no label."""
    cells = [(i, a, x) for a, row in enumerate(table) for i, x in enumerate(row) if x is not None]
    shape = (len(table[0]), len(table), classes)
    return annotators.labels(*zip(*cells, strict=True), shape=shape)


def crowd(accuracy, *, items: int, each: int, seed: int) -> tuple[Labels, np.ndarray]:
    """Labels of annotators who are right with these chances, and the truth."""
    rng, people = np.random.default_rng(seed), len(accuracy)
    truth = rng.integers(2, size=items)
    who = np.concatenate([rng.choice(people, each, replace=False) for _ in range(items)])
    item = np.repeat(np.arange(items), each)
    right = rng.random(len(item)) < np.array(accuracy)[who]
    said = np.where(right, truth[item], 1 - truth[item])
    return annotators.labels(item, who, said, shape=(items, people, 2)), truth


MIXED = [0.9] * 3 + [0.6] * 6 + [0.5] * 3
ADVERSE = [0.9] * 3 + [0.6] * 6 + [0.2] * 3
ALIKE = [0.63] * 12


# Agreement.


def test_two_annotators_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement .7; chance .5*.6 + .5*.4 = .5: kappa .4.
    one = [0] * 25 + [1] * 25
    other = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    found = of([one, other], 2)
    assert annotators.raw_agreement(found) == pytest.approx(0.7)
    assert annotators.cohen_kappa(found, 0, 1) == pytest.approx(0.4)
    # Fleiss's chance is of both together: .55² + .45² = .505, so (.7 - .505)/.495.
    assert annotators.fleiss_kappa(found) == pytest.approx(0.195 / 0.495)
    # Krippendorff's draws without replacement from the 100: (55*54 + 45*44)/(100*99) = .5.
    assert annotators.krippendorff_alpha(found) == pytest.approx(1 - 0.3 / 0.5)


def test_krippendorff_of_the_textbook():
    found = of([[None if x is None else x - 1 for x in row] for row in TEXTBOOK], 5)
    assert annotators.krippendorff_alpha(found) == pytest.approx(0.743, abs=5e-4)
    interval = annotators.krippendorff_alpha(found, values=[1, 2, 3, 4, 5])
    assert interval == pytest.approx(0.849, abs=5e-4)


def test_one_class_or_one_annotator_has_no_kappa():
    same = of([[0, 0], [0, 0]], 2)
    assert annotators.raw_agreement(same) == 1.0
    assert np.isnan(annotators.cohen_kappa(same, 0, 1))
    assert np.isnan(annotators.fleiss_kappa(same))
    assert np.isnan(annotators.krippendorff_alpha(same))
    apart = of([[0, None], [None, 1]], 2)
    for figure in (annotators.raw_agreement, annotators.fleiss_kappa):
        assert np.isnan(figure(apart))
    assert np.isnan(annotators.cohen_kappa(apart, 0, 1))


@pytest.fixture(scope="module")
def pandalm() -> tuple[Labels, np.ndarray]:
    rows = sources.load_rows(shared_data("pandalm_human_pairs") / "testset_v1.jsonl.gz")
    table = np.array([[row[f"annotator{i}"] for row in rows] for i in (1, 2, 3)])
    return of(table.tolist(), 3), table


def test_pandalm_raw_and_by_plain_counting(pandalm):
    found, table = pandalm
    pairs = [np.mean(table[i] == table[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert annotators.raw_agreement(found) == pytest.approx(np.mean(pairs))
    assert round(annotators.raw_agreement(found), 4) == 0.9199  # as the data set's page says
    # Cohen's kappa from counts of pairs of labels.
    counts = np.array(
        [[np.mean((table[0] == a) & (table[2] == b)) for b in range(3)] for a in range(3)]
    )
    chance = counts.sum(0) @ counts.sum(1)
    kappa = (np.trace(counts) - chance) / (1 - chance)
    assert annotators.cohen_kappa(found, 0, 2) == pytest.approx(kappa)


def test_pandalm_is_as_statsmodels_has_it(pandalm):
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    found, table = pandalm
    votes = inter_rater.aggregate_raters(table.T)[0]
    assert annotators.fleiss_kappa(found) == pytest.approx(
        inter_rater.fleiss_kappa(votes), abs=1e-12
    )
    for a, b in ((0, 1), (1, 2)):
        counts = inter_rater.to_table(table[[a, b]].T)[0]
        kappa = inter_rater.cohens_kappa(counts).kappa
        assert annotators.cohen_kappa(found, a, b) == pytest.approx(kappa, abs=1e-12)


def test_pandalm_is_as_krippendorff_has_it(pandalm):
    krippendorff = pytest.importorskip("krippendorff")
    found, table = pandalm
    for metric, values in (("nominal", None), ("interval", [0, 1, 2])):
        theirs = krippendorff.alpha(reliability_data=table, level_of_measurement=metric)
        ours = annotators.krippendorff_alpha(found, values=values)
        assert ours == pytest.approx(theirs, abs=1e-12)


# True classes.


@pytest.mark.parametrize("accuracy", [MIXED, ADVERSE], ids=["mixed", "adverse"])
@pytest.mark.parametrize("seed", range(5))
def test_a_mixed_crowd(accuracy, seed):
    found, truth = crowd(accuracy, items=1000, each=9, seed=seed)
    assert annotators.choose(found, seed=0).apart
    made = annotators.consensus(found, apart=True)
    estimates = annotators.reliability(found, made)
    error = np.abs([x.estimate for x in estimates] - np.array(accuracy))
    assert error.mean() < 0.03 and error.max() < 0.065  # a share of 750 labels: SE .018
    adversaries = [i for i, x in enumerate(estimates) if x.high < 0.5]
    assert adversaries == ([9, 10, 11] if accuracy is ADVERSE else [])
    by_votes = annotators.majority(found)[np.arange(1000), truth].mean()
    by_model = np.mean(made.posterior.argmax(axis=1) == truth)
    assert by_model > by_votes + 0.05
    # Soft labels mean what they say: mean squared error of P(1) below .06, majority's above .14.
    assert np.mean((made.posterior[:, 1] - truth) ** 2) < 0.06
    assert np.mean((annotators.majority(found)[:, 1] - truth) ** 2) > 0.14


@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_of_equals_is_left_to_the_majority(seed):
    found, truth = crowd(ALIKE, items=600, each=3, seed=seed)
    chosen = annotators.choose(found, seed=0)
    assert not chosen.apart and chosen.gain.estimate < 0
    made = annotators.consensus(found, apart=False)
    votes = annotators.majority(found)
    assert (made.posterior.argmax(axis=1) == votes.argmax(axis=1)).all()
    apart = annotators.consensus(found, apart=True)
    assert np.mean(apart.posterior.argmax(axis=1) == truth) < votes[range(600), truth].mean()


def test_one_step_of_em_by_hand():
    # Two items, two annotators who agree on the first and not on the second, all alike. Posteriors
    # begin at (1, 0) and (.5, .5). Counts of said by true class: true 0 said 0: 1+1+.5, said 1: .5;
    # true 1: said 0 .5, said 1 .5. With 1 more everywhere and another on the diagonal:
    # true 0: 4.5, 1.5; true 1: 1.5, 2.5. Prior: (1.5 + 1, .5 + 1)/4.
    found = of([[0, 0], [0, 1]], 2)
    posterior = np.array([[1, 0], [0.5, 0.5]])
    confusion, prior = annotators._maximise(found, posterior, apart=False)
    assert confusion[1] == pytest.approx(np.array([[0.75, 0.25], [0.375, 0.625]]))
    assert prior == pytest.approx([0.625, 0.375])
    posterior, likelihood = annotators._expect(found, confusion, prior)
    # .625*.75² = .35156 and .375*.375² = .05273; .625*.75*.25 = .11719 and .375*.375*.625 = .08789.
    assert posterior == pytest.approx(np.array([[0.86957, 0.13043], [0.57143, 0.42857]]), abs=1e-5)
    assert likelihood == pytest.approx(np.log(0.40430) + np.log(0.20508), abs=1e-4)


def test_em_never_loses_likelihood():
    found, _ = crowd(MIXED, items=200, each=5, seed=0)
    votes = annotators._votes(found) + 1e-9
    posterior, objective = votes / votes.sum(axis=1, keepdims=True), []
    for _ in range(30):
        confusion, prior = annotators._maximise(found, posterior, apart=True)
        posterior, likelihood = annotators._expect(found, confusion, prior)
        pseudo = np.log(confusion).sum() + np.log(prior).sum()
        pseudo += np.log(np.diagonal(confusion, axis1=1, axis2=2)).sum()
        objective.append(likelihood + pseudo)
    assert (np.diff(objective) > -1e-9).all()


def test_three_classes_and_missing_labels():
    rng = np.random.default_rng(0)
    truth, accuracy = rng.integers(3, size=400), [0.95, 0.8, 0.8, 0.4]
    table = [
        [
            None if rng.random() < 0.2 else int(t if rng.random() < p else rng.integers(3))
            for t in truth
        ]
        for p in accuracy
    ]
    found = of(table, 3)
    made = annotators.consensus(found, apart=True)
    assert np.mean(made.posterior.argmax(axis=1) == truth) > 0.93
    assert made.posterior.sum(axis=1) == pytest.approx(1)
    # Right with chance p, or by luck: p + (1 - p)/3.
    wanted = [p + (1 - p) / 3 for p in accuracy]
    estimates = [x.estimate for x in annotators.reliability(found, made)]
    assert estimates == pytest.approx(wanted, abs=0.06)


def test_the_choice_is_the_same_for_the_same_seed():
    found, _ = crowd(MIXED, items=100, each=4, seed=1)
    assert annotators.choose(found, seed=3) == annotators.choose(found, seed=3)
    assert annotators.choose(found, seed=3) != annotators.choose(found, seed=4)


def test_one_label_an_item_says_nothing_of_anybody():
    # One says 0 more often than the other, and there is nothing to compare that with.
    found = of([[0, 0, 0, 1, None, None, None], [None, None, None, None, 1, 1, 0]], 2)
    assert annotators.choose(found, seed=0) == (False, (0.0, -np.inf, np.inf))
    made = annotators.consensus(found, apart=True)
    assert all(np.isnan(x.estimate) for x in annotators.reliability(found, made))


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (([0, 0], [1, 1], [0, 1]), "twice"),
        (([0, 2], [0, 1], [0, 1]), "items"),
        (([0, 1], [0, 1], [0, 2]), "classes"),
        (([0, 1], [0], [0, 1]), "annotators"),
        (([], [], []), "items"),
    ],
)
def test_labels_are_checked(cells, says):
    with pytest.raises(ValueError, match=says):
        annotators.labels(*cells, shape=(2, 2, 2))


# Bradley-Terry with a competence.


def test_crowd_bradley_terry():
    rng, truth = np.random.default_rng(0), np.linspace(-2.5, 2.5, 8)
    eta = np.array([0.95, 0.95, 0.8, 0.5, 0.1])
    first = rng.integers(8, size=5000)
    second = (first + rng.integers(1, 8, size=5000)) % 8
    who = rng.integers(5, size=5000)
    won = rng.random(5000) < special.expit(truth[first] - truth[second])
    said = np.where(rng.random(5000) < eta[who], won, ~won)
    found = annotators.competence(first, second, said, who, shape=(8, 5), prior=0.01)
    assert found.competence == pytest.approx(eta, abs=0.06)
    assert found.ratings == pytest.approx(truth, abs=0.35)
    assert found.ratings.mean() == pytest.approx(0, abs=1e-9)


def test_its_slope_is_that_of_the_likelihood():
    """At the maximum no small step helps: a wrong slope would stop the search elsewhere."""
    rng = np.random.default_rng(1)
    first = rng.integers(3, size=60)
    second = (first + rng.integers(1, 3, size=60)) % 3
    said, who = rng.random(60) < 0.6, rng.integers(2, size=60)
    found = annotators.competence(first, second, said, who, shape=(3, 2), prior=0.5)

    def loss(r, eta):
        p = special.expit(np.where(said, 1, -1) * (r[first] - r[second]))
        chance = eta[who] * p + (1 - eta[who]) * (1 - p)
        beta = np.sum(2 * np.log(eta) + 0.5 * np.log(1 - eta))
        return -np.log(chance).sum() + 0.25 * np.sum(r**2) - beta

    best = loss(found.ratings, found.competence)
    for i in range(3):
        for step in (-1e-3, 1e-3):
            assert loss(found.ratings + step * np.eye(3)[i], found.competence) > best
    for i in range(2):
        for step in (-1e-3, 1e-3):
            assert loss(found.ratings, found.competence + step * np.eye(2)[i]) > best


def test_shares():
    found = annotators.shares([1, 1, 0, 1], [0, 0, 0, 2], people=3)
    assert found[0].estimate == pytest.approx(2 / 3) and found[2].estimate == 1
    assert np.isnan(found[1].estimate) and found[1][1:] == (0.0, 1.0)
    assert json.dumps([x.low for x in found])
