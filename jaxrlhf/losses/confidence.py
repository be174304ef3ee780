"""Weak-to-strong losses: learn from a weaker teacher, and trust yourself where you disagree.

Every loss here is the cross-entropy to a target that nothing differentiates through. What differs
is the target, so that is what the named functions make:

    target = confidence.mended(logits, weak, progress=s, max_weight=0.5)
    loss = masked.mean(confidence.cross_entropy(logits, target), mask)

The auxiliary confidence loss mixes the weak label w with the student's own prediction h made hard,
t = (1 − κ)·w + κ·h, and κ grows while it trains. In print it has three forms:

    paper     κ rises to its maximum in the first 20 %; half of the batch is positive
    released  κ = .5·s up to s = .1, where it is .05, and then jumps to .5; as many positives as
              the weak labels have on average. The jump is a slip (pull request 33 of that code)
    mended    the released code with the ramp that it meant

`entropic`, `rolling`, `balanced` and `in_window` are variants of EleutherAI's code. `product` is
the third loss of the released code.

Batches: `logits` and `weak` [B, 2]; `mask` [B] bool, which rows are real: shares and thresholds
are over those alone. A threshold is of the whole batch: inside `shard_map` one device's part would
have another, and under a mesh with Explicit axes the batch axis must not be split (it is sorted).
With more classes (`argmax_labels`) and on tokens (`token_confidence`) nothing is thresholded.

Deviation: 1. `balanced` keeps labels 1e-6 from 0 and 1, where their log-odds are infinite.

Deliberately not here: ramps by step (a progress is a share of training), reductions, the model.
Sources: Burns et al. 2023 (arXiv 2312.09390), section 4.3.2 and appendix A.4; openai/weak-to-strong
at 6b450f2; EleutherAI/w2s at a929af0.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses import log_probs, masked
from jaxrlhf.losses._boundary import as_float32, boolean, isolate, same_shape

EMPTY = -1.0  # of `rolling`: a place that holds no probability yet
CLOSEST = 1e-6  # of `balanced`


def cross_entropy(logits: chex.Array, targets: chex.Array) -> jax.Array:
    """−Σ_k t_k·log softmax(z)_k, for soft or hard targets; no gradient through the targets.

    Args: `logits` [..., K]; `targets` [..., K] probabilities. Returns: [...] float32, nats.

    >>> round(cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.3, 0.7]])).item(), 4)  # log 2
    0.6931
    """
    logits, targets = _both(logits, targets)

    def loss(z: jax.Array, t: jax.Array) -> jax.Array:
        return -jnp.sum(t * jax.nn.log_softmax(z), axis=-1)

    return isolate(loss, logits, lax.stop_gradient(targets))


# ------------------------------------------------------- named targets


def paper(
    logits: chex.Array,
    weak: chex.Array,
    *,
    progress: chex.Numeric,
    max_weight: chex.Numeric,
    mask: chex.Array | None = None,
) -> jax.Array:
    """(1 − α)·w + α·1[f > t], α linear to `max_weight` at s = .2, t such that half is positive.

    Args: `progress` s in [0, 1], share of training done; `max_weight` is .75 for the paper's
    largest students and .5 for the others. Returns: targets [B, 2], constants.

    >>> z, w = jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([[0.75, 0.25], [0.75, 0.25]])
    >>> paper(z, w, progress=0.1, max_weight=0.5).tolist()  # α = ¼
    [[0.8125, 0.1875], [0.5625, 0.4375]]
    """
    own = rank_labels(logits, 0.5, mask=mask)
    return mixed(weak, own, as_float32(max_weight) * ramp(progress, share=0.2))


def released(
    logits: chex.Array,
    weak: chex.Array,
    *,
    progress: chex.Numeric,
    mask: chex.Array | None = None,
) -> jax.Array:
    """(1 − κ)·w + κ·h, κ = ½·`released_ramp`(s), h by the quantile of the mean weak label.

    Returns: targets [B, 2], constants. Source: `logconf_loss_fn` of openai/weak-to-strong.

    >>> z, w = jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([[0.5, 0.5], [0.5, 0.5]])
    >>> released(z, w, progress=0.5).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    own = quantile_labels(logits, positive_share(weak, mask=mask), mask=mask)
    return mixed(weak, own, 0.5 * released_ramp(progress))


def mended(
    logits: chex.Array,
    weak: chex.Array,
    *,
    progress: chex.Numeric,
    max_weight: chex.Numeric,
    ramp_share: chex.Numeric = 0.1,
    mask: chex.Array | None = None,
) -> jax.Array:
    """`released` with the ramp that it meant: κ linear to `max_weight` at s = `ramp_share`.

    Args: `max_weight` (½ in the released code). Returns: targets [B, 2], constants.

    >>> z, w = jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([[0.5, 0.5], [0.5, 0.5]])
    >>> mended(z, w, progress=0.05, max_weight=0.5).tolist()  # κ = ¼
    [[0.625, 0.375], [0.375, 0.625]]
    """
    own = quantile_labels(logits, positive_share(weak, mask=mask), mask=mask)
    return mixed(weak, own, as_float32(max_weight) * ramp(progress, share=ramp_share))


def rolling(
    logits: chex.Array, weak: chex.Array, recent: chex.Array, *, weight: chex.Numeric
) -> jax.Array:
    """(1 − κ)·w + κ·h, h by the quantile of `recent`, which `remember` fills: for small batches.

    The share of positives is the mean weak label of this batch; with `balanced` labels it is near
    ½. Args: `recent` [N] probabilities of class 0, the batch's own among them; `weight` κ.
    Returns: targets [B, 2], constants. Source: EleutherAI/w2s (N = 32).

    >>> recent = remember(jnp.full(4, EMPTY), jnp.zeros((2, 2)))
    >>> z, w = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]])
    >>> rolling(z, w, recent, weight=0.5).tolist()  # class 0 has less than its usual ½
    [[0.25, 0.75]]
    """
    recent = as_float32(recent)
    share = positive_share(weak, mask=None)
    threshold = quantile(recent, share, mask=recent >= 0.0)
    return mixed(weak, _from_first(_first(logits) >= threshold), weight)


def entropic(logits: chex.Array, weak: chex.Array, *, weight: chex.Numeric) -> jax.Array:
    """(1 − κ)·w + κ·softmax(z): the own prediction as it is; its cross-entropy is an entropy.

    Args: `logits`, `weak` [..., K]; `weight` κ. Returns: targets [..., K], constants.

    >>> entropic(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]), weight=0.5).tolist()
    [[0.75, 0.25]]
    """
    return mixed(weak, jax.nn.softmax(as_float32(logits)), weight)


def product(
    logits: chex.Array, weak: chex.Array, *, alpha: chex.Numeric, beta: chex.Numeric
) -> jax.Array:
    """t ∝ softmax(z)^β · w^α: what both believe. The released code has α = β = 1.

    Args: `logits`, `weak` [..., K]. Returns: targets [..., K], constants.

    >>> z, w = jnp.log(jnp.array([[0.8, 0.2]])), jnp.array([[0.2, 0.8]])
    >>> product(z, w, alpha=1.0, beta=1.0).round(3).tolist()
    [[0.5, 0.5]]
    """
    logits, weak = _both(logits, weak)
    smallest = jnp.finfo(jnp.float32).tiny  # log 0 times an α of 0 would be NaN
    joint = as_float32(beta) * jax.nn.log_softmax(logits)
    joint = joint + as_float32(alpha) * jnp.log(jnp.maximum(weak, smallest))
    return lax.stop_gradient(jax.nn.softmax(joint))


def token_confidence(logits: chex.Array, tokens: chex.Array, *, weight: chex.Numeric) -> jax.Array:
    """−(1 − κ)·log π(token) − κ·max_v log π(v): weak tokens, and the student's own greedy ones.

    Args: `logits` [B, T, V], already shifted; `tokens` [B, T] that the teacher wrote; `weight` κ.
    Returns: [B, T] float32, nats. Source: the generative form of Burns et al. 2023, appendix A.4.

    >>> z = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]]))
    >>> round(token_confidence(z, jnp.array([[1]]), weight=0.5).item(), 4)  # ½·log 4 + ½·log 2
    1.0397
    """
    logits, weight = as_float32(logits), as_float32(weight)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    theirs = log_probs.from_logits(logits, tokens).log_probs
    own = log_probs.from_logits(logits, greedy).log_probs
    return -(1.0 - weight) * theirs - weight * own


# ------------------------------------------------------- the parts they share


def mixed(weak: chex.Array, own: chex.Array, weight: chex.Numeric) -> jax.Array:
    """(1 − κ)·w + κ·h, without gradient.

    Args: `weak`, `own` [..., K] probabilities; `weight` κ in [0, 1]. Returns: [..., K] float32.

    >>> mixed(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]), 0.5).tolist()
    [0.75, 0.25]
    """
    weak, own = as_float32(weak), as_float32(own)
    same_shape(weak=weak, own=own)
    weight = as_float32(weight)
    return lax.stop_gradient((1.0 - weight) * weak + weight * own)


def ramp(progress: chex.Numeric, *, share: chex.Numeric) -> jax.Array:
    """min(1, s / share): linear from 0 to 1 over the first `share` of training; 1 at share 0.

    >>> [round(float(ramp(s, share=0.2)), 2) for s in (0.0, 0.1, 0.2, 0.9)]
    [0.0, 0.5, 1.0, 1.0]
    """
    progress, share = as_float32(progress), as_float32(share)
    rising = jnp.minimum(1.0, progress / jnp.where(share > 0.0, share, 1.0))
    return jnp.where(share > 0.0, rising, 1.0)


def released_ramp(progress: chex.Numeric) -> jax.Array:
    """s up to s = .1, then 1: as released, with its jump.

    >>> [round(float(released_ramp(s)), 2) for s in (0.0, 0.1, 0.11, 1.0)]
    [0.0, 0.1, 1.0, 1.0]
    """
    progress = as_float32(progress)
    return jnp.where(progress > 0.1, 1.0, progress)


def quantile_labels(
    logits: chex.Array, share: chex.Numeric, *, mask: chex.Array | None = None
) -> jax.Array:
    """One-hot own labels: class 0 where p₀ ≥ its `share`-quantile, interpolated, over the batch.

    So the share of class 1 is `share` within one example, if no two predictions are equal; equal
    ones at the threshold are all of class 0.
    Args: `logits` [B, 2]; `share` of class 1 in [0, 1]. Returns: [B, 2] float32.

    >>> z = jnp.array([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0], [0.0, 4.0]])
    >>> quantile_labels(z, 0.25)[:, 1].tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    first = _first(logits)
    return _from_first(first >= quantile(first, share, mask=mask))


def rank_labels(
    logits: chex.Array, share: chex.Numeric, *, mask: chex.Array | None = None
) -> jax.Array:
    """One-hot own labels: class 1 for the round(share·B) rows that lean to it most.

    Exact with equal predictions too: of those the earlier rows are of class 1.
    Args: `logits` [B, 2]; `share` of class 1 in [0, 1]. Returns: [B, 2] float32.

    >>> rank_labels(jnp.zeros((4, 2)), 0.5)[:, 1].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    first = _first(logits)
    real = _real(first, mask)
    order = jnp.arange(first.shape[0])
    before = (first[None, :] < first[:, None]) | (
        (first[None, :] == first[:, None]) & (order[None, :] < order[:, None])
    )
    rank = jnp.sum(before & real[None, :], axis=1).astype(jnp.float32)
    wanted = jnp.round(as_float32(share) * jnp.sum(real).astype(jnp.float32))
    return _from_first(~(real & (rank < wanted)))


def argmax_labels(logits: chex.Array) -> jax.Array:
    """One-hot own labels [..., K]: the most probable class, the first of equal ones; no threshold.

    >>> argmax_labels(jnp.array([[0.0, 2.0, 1.0]])).tolist()
    [[0.0, 1.0, 0.0]]
    """
    logits = as_float32(logits)
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)


def positive_share(weak: chex.Array, *, mask: chex.Array | None = None) -> jax.Array:
    """Mean of w₁ over real rows: how many of the own labels are to be of class 1.

    >>> round(float(positive_share(jnp.array([[0.9, 0.1], [0.5, 0.5]]))), 2)
    0.3
    """
    positive = _of_two(weak)[:, 1]
    return masked.mean(positive, _real(positive, mask))


def balanced(weak: chex.Array, *, mask: chex.Array | None = None) -> jax.Array:
    """Weak labels shifted in log-odds so that those have mean 0: w₁′ = σ(logit w₁ − mean logit w₁).

    Args: `weak` [B, 2]. Returns: [B, 2] float32. Source: EleutherAI/w2s (`balance_batch`).

    >>> balanced(jnp.array([[0.2, 0.8], [0.2, 0.8]]))[:, 1].tolist()
    [0.5, 0.5]
    """
    positive = jnp.clip(_of_two(weak)[:, 1], CLOSEST, 1.0 - CLOSEST)
    odds = jnp.log(positive) - jnp.log1p(-positive)
    moved = odds - masked.mean(odds, _real(odds, mask))
    return lax.stop_gradient(jnp.stack([jax.nn.sigmoid(-moved), jax.nn.sigmoid(moved)], axis=1))


def in_window(logits: chex.Array, *, radius: chex.Numeric) -> jax.Array:
    """Which rows still count: those whose larger probability is below ½ + `radius`.

    The loss is their sum over the size of the whole batch, `masked.mean(jnp.where(inside, loss, 0),
    mask)`. Args: `logits` [B, 2]. Returns: [B] bool. Source: EleutherAI/w2s (radius .15).

    >>> in_window(jnp.array([[0.0, 0.1], [0.0, 5.0]]), radius=0.15).tolist()
    [True, False]
    """
    first = _first(logits)
    return jnp.maximum(first, 1.0 - first) < 0.5 + as_float32(radius)


def window_radius(weak: chex.Array, *, mask: chex.Array | None = None) -> jax.Array:
    """Median of |w₁ − ½|: the radius that EleutherAI/w2s calls "midweak".

    >>> round(float(window_radius(jnp.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7]]))), 2)
    0.2
    """
    return quantile(jnp.abs(_of_two(weak)[:, 1] - 0.5), 0.5, mask=mask)


def remember(
    recent: chex.Array, logits: chex.Array, *, mask: chex.Array | None = None
) -> jax.Array:
    """The buffer of `rolling` with the batch's probabilities of class 0 in, the oldest out.

    Args: `recent` [N], `EMPTY` where nothing has been put yet. Returns: [N] float32.

    >>> remember(jnp.full(3, EMPTY), jnp.zeros((1, 2))).tolist()
    [-1.0, -1.0, 0.5]
    """
    recent, first = as_float32(recent), _first(logits)
    new = jnp.where(_real(first, mask), first, EMPTY)
    return lax.stop_gradient(jnp.concatenate([recent, new])[-recent.shape[0] :])


def quantile(x: chex.Array, share: chex.Numeric, *, mask: chex.Array | None = None) -> jax.Array:
    """The value below which `share` of `x` lies, linear between neighbours; over real rows.

    Args: `x` [N] finite; `share` in [0, 1]. Returns: float32; +inf where no row is real.

    >>> float(quantile(jnp.array([3.0, 1.0, 2.0]), 0.25))
    1.5
    """
    x = as_float32(x)
    real = _real(x, mask)
    ordered = jnp.sort(jnp.where(real, x, jnp.inf))
    count = jnp.sum(real).astype(jnp.float32)
    place = as_float32(share) * jnp.maximum(count - 1.0, 0.0)
    below, above = (_at(ordered, f(place)) for f in (jnp.floor, jnp.ceil))
    part = place - jnp.floor(place)
    return jnp.where(part > 0.0, below + part * (above - below), below)


def _at(x: jax.Array, place: jax.Array) -> jax.Array:
    """x[place], by comparing: a gather along an axis that is sharded over a mesh may raise."""
    here = jnp.arange(x.shape[0]) == place.astype(jnp.int32)
    return jnp.sum(jnp.where(here, x, 0.0))


def _first(logits: chex.Array) -> jax.Array:
    """Probability of class 0, [B], without gradient."""
    return jax.nn.softmax(lax.stop_gradient(_of_two(logits)))[:, 0]


def _from_first(is_first: jax.Array) -> jax.Array:
    return jnp.stack([is_first, ~is_first], axis=1).astype(jnp.float32)


def _of_two(x: chex.Array) -> jax.Array:
    x = as_float32(x)
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"expected [B, 2], got {x.shape}: a threshold tells two classes apart")
    return x


def _real(x: jax.Array, mask: chex.Array | None) -> jax.Array:
    if mask is None:
        return jnp.ones_like(x, dtype=bool)
    mask = boolean(mask)
    same_shape(x=x, mask=mask)
    return mask


def _both(logits: chex.Array, targets: chex.Array) -> tuple[jax.Array, jax.Array]:
    logits, targets = as_float32(logits), as_float32(targets)
    same_shape(logits=logits, targets=targets)
    return logits, targets
