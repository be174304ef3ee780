"""Sum, mean, variance and whitening over the positions where a mask is True.

What is under a False is never read: NaN or infinity there changes neither a value nor a gradient,
and an empty mask gives 0. Inside `shard_map`, `axis_name` names the mesh axes to reduce over as
well, so that a mean is the mean of the whole batch and not of one device's share; elsewhere leave
it out.

Deliberately not here: any choice of what to average over. A loss is reduced where it is used, in
sight.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.losses._boundary import as_float32, boolean, same_shape

Axis = int | tuple[int, ...] | None
AxisName = str | tuple[str, ...] | None


def sum(
    x: chex.Array, mask: chex.Array, axis: Axis = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Sum of `x` where `mask`: Σ mask·x.

    Args: `x` [...] any real dtype; `mask` [...] bool, same shape; `axis` to sum over, all by
    default.
    Returns: float32, `axis` removed. Raises: AssertionError on a mask that is not bool or fits not.

    >>> float(sum(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([True, True, False])))
    3.0
    """
    return _sum(*_checked(x, mask), axis, axis_name)


def mean(
    x: chex.Array, mask: chex.Array, axis: Axis = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Mean of `x` where `mask`: Σ mask·x / max(Σ mask, 1).

    Args: as `sum`. Returns: float32, `axis` removed; 0 where nothing is True.

    >>> x, mask = jnp.array([[1.0, 2.0], [3.0, 9.0]]), jnp.array([[True, True], [True, False]])
    >>> float(mean(x, mask)), mean(x, mask, axis=1).tolist()
    (2.0, [1.5, 3.0])
    """
    x, mask = _checked(x, mask)
    return _sum(x, mask, axis, axis_name) / _count(mask, axis, axis_name)


def var(
    x: chex.Array, mask: chex.Array, axis: Axis = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Population variance of `x` where `mask`: Σ mask·(x − mean)² / max(Σ mask, 1).

    Args: as `sum`. Returns: float32, `axis` removed; 0 where nothing is True.

    >>> float(var(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False])))
    1.0
    """
    x, mask = _checked(x, mask)
    count = _count(mask, axis, axis_name, keepdims=True)
    centre = _sum(x, mask, axis, axis_name, keepdims=True) / count
    squares = jnp.square(jnp.where(mask, x, 0.0) - centre)
    return _sum(squares, mask, axis, axis_name) / _count(mask, axis, axis_name)


def whiten(
    x: chex.Array,
    mask: chex.Array,
    *,
    shift_mean: bool,
    epsilon: float = 1e-8,
    axis_name: AxisName = None,
) -> jax.Array:
    """`x` at unit variance: (x − mean) / √(var + ε), plus the mean again unless `shift_mean`.

    One mean and one population variance over the whole array (and over `axis_name`): whiten a whole
    minibatch at once, never a device's or a micro-batch's share of it.
    Args: `x` [...], `mask` [...] bool; `shift_mean` True for advantages, False for rewards (moving
    the mean of rewards would reward or punish length).
    Returns: float32 like `x`, 0 where not `mask`. Source: Ziegler et al. 2019, code (`whiten`).

    >>> x = jnp.array([1.2, 1.6, 2.0])
    >>> whiten(x, jnp.array([True, False, True]), shift_mean=True).round(3).tolist()
    [-1.0, 0.0, 1.0]
    """
    x, mask = _checked(x, mask)
    centre = mean(x, mask, axis_name=axis_name)
    scale = lax.rsqrt(var(x, mask, axis_name=axis_name) + epsilon)
    whitened = (jnp.where(mask, x, 0.0) - centre) * scale
    return jnp.where(mask, whitened if shift_mean else whitened + centre, 0.0)


def _checked(x: chex.Array, mask: chex.Array) -> tuple[jax.Array, jax.Array]:
    x, mask = as_float32(x), boolean(mask)
    same_shape(x=x, mask=mask)
    return x, mask


def _sum(
    x: jax.Array, mask: jax.Array, axis: Axis, axis_name: AxisName, keepdims: bool = False
) -> jax.Array:
    total = jnp.sum(x, axis=axis, where=mask, keepdims=keepdims)
    return total if axis_name is None else lax.psum(total, axis_name)


def _count(mask: jax.Array, axis: Axis, axis_name: AxisName, keepdims: bool = False) -> jax.Array:
    ones = mask.astype(jnp.float32)
    return jnp.maximum(_sum(ones, mask, axis, axis_name, keepdims), 1.0)
