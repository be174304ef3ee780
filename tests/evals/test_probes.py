"""Linear probes: Fisher's direction, held-out figures, chance, ROC."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxrlhf.evals import directions, probes
from jaxrlhf.evals.weak_to_strong import auroc

RNG = np.random.default_rng(0)
SHEAR = np.array([[1.0, 0.0], [3.0, 1.0]])  # covariance SHEAR' SHEAR = [[10, 3], [3, 1]]


def two_groups(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (0, 1) apart."""
    a, b = (RNG.standard_normal((count, 2)) @ SHEAR for _ in range(2))
    return a + np.array([0.0, 1.0]), b


def test_the_discriminant_turns_away_from_what_varies():
    """S^-1 (0, 1) for S = [[10, 3], [3, 1]], det 1, is (-3, 10) / 1: unit (-.287, .958)."""
    found = probes.discriminant(*two_groups(20_000), shrinkage=0.0)
    np.testing.assert_allclose(found, np.array([-3.0, 10.0]) / np.sqrt(109), atol=0.02)


def test_it_reads_more_than_a_difference_of_means_does():
    """Mahalanobis distance sqrt((0, 1) S^-1 (0, 1)') = sqrt(10): AUROC Phi(sqrt(10 / 2)) = .987;
    along (0, 1) itself the distance is 1 of standard deviation 1: Phi(1 / sqrt(2)) = .760."""
    a, b = two_groups(20_000)
    states, kind = np.concatenate([a, b]), np.arange(40_000) < 20_000
    by_fisher = auroc(states @ probes.discriminant(a, b, shrinkage=0.0), kind)
    by_means = auroc(states @ np.asarray(directions.between([[0.0, 1.0]], [[0.0, 0.0]])), kind)
    assert by_fisher == pytest.approx(norm.cdf(np.sqrt(5)), abs=0.005)
    assert by_means == pytest.approx(norm.cdf(np.sqrt(0.5)), abs=0.01)


def test_labels_without_a_meaning_are_at_chance_on_held_out_rows():
    """40 rows of 39 numbers: a probe without a held-out half would be perfect."""
    states, labels = RNG.standard_normal((400, 150)), RNG.random(400) < 0.5
    assert probes.held_out_auroc(states, labels) == pytest.approx(0.5, abs=0.12)
    assert auroc(states @ probes.discriminant(states[labels], states[~labels]), labels) > 0.8


def test_too_few_rows_of_a_kind_say_nothing():
    labels = np.arange(100) < 30
    assert probes.held_out_auroc(RNG.standard_normal((100, 3)), labels) is None
    assert probes.held_out_auroc(RNG.standard_normal((100, 3)), labels, fewest=15) is not None


def test_what_cannot_be_probed_is_said():
    with pytest.raises(ValueError, match="rows of both kinds, got 2 and 0"):
        probes.discriminant(np.ones((2, 3)), np.ones((0, 3)))
    with pytest.raises(ValueError, match="do not vary"):
        probes.discriminant(np.ones((2, 3)), np.ones((2, 3)))


def test_chance_is_what_random_directions_reach():
    """On pure noise each is .5 up to its error of .02, and turned the way that helps."""
    states, kind = RNG.standard_normal((1000, 8)), np.arange(1000) < 500
    found = probes.chance_auroc(states, kind, draws=20, rng=np.random.default_rng(1))
    assert 0.5 < found < 0.55


def test_hit_rates_are_the_roc_curve():
    """Positives 4, 2, 0; negatives 3, 1. Without a false alarm only 4 is above 3; with one of two
    allowed, 4 and 2; with both, all."""
    scores, kind = [4.0, 3.0, 2.0, 1.0, 0.0], [True, False, True, False, True]
    found = probes.hit_rates(scores, kind, [0.0, 0.4, 0.5, 1.0])
    assert found == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1.0])
