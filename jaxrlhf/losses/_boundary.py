"""What may enter a loss, and how a bad number is kept where it is.

Two kinds of argument. What a model or a rule hands over (logits, hidden states, scores) may have
any real dtype and becomes float32 here: a score of 0.7 must not end up in an integer array. What
other losses made (log-probs, values, advantages) has to be float32 already: a bfloat16 log-prob has
lost the digits that a ratio is made of, and converting it would hide that.

Deliberately not here: reductions (`masked`) and checks of values, which cannot be made under `jit`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def as_float32(x: ArrayLike) -> jax.Array:
    """Any real number, integer or bool becomes float32; complex raises `TypeError`."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"expected real numbers, got {x.dtype}")
    return x.astype(jnp.float32)


def float32(**arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The arrays, asserted to be float32 and of one shape; the error names the argument."""
    named = {name: jnp.asarray(x) for name, x in arrays.items()}
    for name, x in named.items():
        chex.assert_type(
            x,
            jnp.float32,
            custom_message=f"`{name}` is {x.dtype}; losses take float32: compute it in float32",
        )
    same_shape(**named)
    return tuple(named.values())


def boolean(mask: ArrayLike) -> jax.Array:
    """The mask, asserted to be bool: an integer mask is usually token ids by mistake."""
    mask = jnp.asarray(mask)
    chex.assert_type(mask, jnp.bool_, custom_message=f"`mask` is {mask.dtype}; it must be bool")
    return mask


def same_shape(**arrays: jax.Array) -> None:
    """Raise `AssertionError` with every name and shape unless all shapes are equal."""
    shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
    chex.assert_equal_shape(list(arrays.values()), custom_message=shapes)


def isolate(loss: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`loss(*arrays)`, where a position that comes out NaN or infinite has a gradient of zero.

    The value stays as it is, so a bad number at a position that counts is still loud in the reduced
    loss. At a position that the caller masks away, the zero cotangent would meet an infinite
    derivative (0 * inf = NaN) and poison the whole gradient: hence a `where` before the loss as
    well as after it. Trailing axes that `loss` reduces (the vocabulary) are cleaned with their
    position.
    """
    raw = loss(*(lax.stop_gradient(x) for x in arrays))
    ok = jnp.isfinite(raw)

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where(ok.reshape(ok.shape + (1,) * (x.ndim - ok.ndim)), x, 0.0)

    return jnp.where(ok, loss(*(clean(x) for x in arrays)), raw)
