"""Intervals against scipy.stats (1.17), by hand, and by coverage in simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxrlhf.evals.statistics import (
    Interval,
    bootstrap_mean,
    format_interval,
    gated_ratio,
    paired_bootstrap,
    t_interval,
    wilson,
)


def test_t_interval_by_hand():
    # 1..5: mean 3, s = sqrt(2.5), t_4(.975) = 2.776445, half width 2.776445 * sqrt(2.5 / 5).
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - 1.963243, 3 + 1.963243), abs=1e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_t_interval_is_scipys(count, confidence):
    values = np.random.default_rng(count).normal(3, 2, count)
    low, high = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
    ours = t_interval(values, confidence=confidence)
    assert ours == pytest.approx((values.mean(), low, high))


def test_one_seed_has_no_interval():
    assert t_interval([2.5]) == (2.5, -math.inf, math.inf)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize(("successes", "total"), [(0, 7), (7, 7), (3, 10), (840, 1000)])
def test_wilson_is_scipys(successes, total, confidence):
    theirs = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    ours = wilson(successes, total, confidence=confidence)
    assert ours == pytest.approx((successes / total, theirs.low, theirs.high), abs=1e-12)


def test_wilson_takes_halves():
    assert wilson(2.5, 5).estimate == 0.5
    for successes, total in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="not a share"):
            wilson(successes, total)


def test_bootstrap_agrees_with_the_normal_interval_on_many_rows():
    # For 2,000 rows the percentile interval is mean +- 1.96 s / sqrt(N) but for resampling noise:
    # an end point from 4,000 resamples has a standard error of about .03 of the half width.
    values = np.random.default_rng(0).exponential(2.0, 2_000)
    ours = bootstrap_mean(values, resamples=4_000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert ours.estimate == values.mean()
    assert ours.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert ours.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_reproducible():
    values = np.arange(20.0)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_copies_of_a_prompt_are_no_new_information():
    # Ten identical samples a prompt: with clusters the interval is that of the prompts alone,
    # without them it is sqrt(10) times too narrow.
    prompts = np.random.default_rng(0).normal(size=200)
    values, clusters = np.repeat(prompts, 10), np.repeat(np.arange(200), 10)
    width = lambda interval: interval.high - interval.low  # noqa: E731
    honest = width(bootstrap_mean(values, clusters=clusters))
    assert honest == pytest.approx(width(bootstrap_mean(prompts)), rel=1e-6)  # same draws
    assert honest / width(bootstrap_mean(values)) == pytest.approx(math.sqrt(10), rel=0.15)


def test_clusters_may_have_any_names_and_sizes():
    # The mean stays the mean over rows: (1 + 2 + 3 + 10) / 4, not the mean of cluster means.
    ours = bootstrap_mean([1, 2, 3, 10], clusters=["a", "a", "a", "b"], resamples=500)
    assert ours.estimate == 4.0
    # Resamples are {a, a}: 2, {a, b}: 4, {b, b}: 10.
    assert (ours.low, ours.high) == (2.0, 10.0)


def test_the_bootstrap_covers():
    # 400 experiments of 60 prompts x 3 samples, intra-prompt correlation 1/2. 95 % nominal; the
    # percentile bootstrap of 60 clusters covers about 94 %. Four standard errors: .045.
    rng, covered = np.random.default_rng(0), 0
    clusters = np.repeat(np.arange(60), 3)
    for experiment in range(400):
        values = np.repeat(rng.normal(size=60), 3) + rng.normal(size=180)
        interval = bootstrap_mean(values, clusters=clusters, resamples=400, seed=experiment)
        covered += interval.low <= 0 <= interval.high
    assert covered / 400 == pytest.approx(0.94, abs=0.045)


def test_t_and_wilson_intervals_cover():
    # 4,000 experiments each; 95 % nominal, four standard errors .014 (Wilson's is discrete: .02).
    rng = np.random.default_rng(0)
    seeds = [t_interval(values) for values in rng.normal(size=(4_000, 5))]
    assert np.mean([i.low <= 0 <= i.high for i in seeds]) == pytest.approx(0.95, abs=0.014)
    shares = [wilson(successes, 40) for successes in rng.binomial(40, 0.9, 4_000).tolist()]
    assert np.mean([i.low <= 0.9 <= i.high for i in shares]) == pytest.approx(0.95, abs=0.02)


def test_paired_differences_cancel_what_both_share():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 300)
    a, b = hard + 0.5 + rng.normal(0, 0.5, 300), hard + rng.normal(0, 0.5, 300)
    paired = paired_bootstrap(a, b)
    assert paired.difference.estimate == pytest.approx((a - b).mean())
    assert 0 < paired.difference.low < 0.5 < paired.difference.high < 0.7
    assert paired.share_higher == 1.0
    assert bootstrap_mean(a).low < bootstrap_mean(b).high  # the unpaired intervals overlap
    assert paired_bootstrap(a, a).share_higher == 0.5  # ties count half
    assert paired_bootstrap(b, a).share_higher == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "at least one number"),
        (lambda: bootstrap_mean([1.0]), "two clusters"),
        (lambda: bootstrap_mean([1.0, 2.0], clusters=["a", "a"]), "two clusters"),
        (lambda: bootstrap_mean([1.0, 2.0], clusters=["a"]), "clusters of shape"),
        (lambda: bootstrap_mean([1.0, math.nan]), "1 of 2 numbers are not finite"),
        (lambda: t_interval([[1.0]]), "shape"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "2 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_ratio_over_a_small_gap_is_not_given():
    assert gated_ratio(0.06, 0.12, denominator_error=0.02) == pytest.approx(0.5)
    assert gated_ratio(0.06, 0.04, denominator_error=0.001) is None  # below .05
    assert gated_ratio(0.06, 0.12, denominator_error=0.05) is None  # within 3 standard errors
    assert gated_ratio(0.06, -0.12, denominator_error=0.001) is None  # upside down


def test_format_interval():
    assert format_interval(Interval(0.8412, 0.80, 0.879)) == "0.84 [0.80, 0.88]"
    assert format_interval(Interval(13.0, 12.04, 14.0), digits=1) == "13.0 [12.0, 14.0]"
    assert format_interval(t_interval([2.5])) == "2.50 [no interval]"
