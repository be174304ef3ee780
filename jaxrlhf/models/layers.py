"""The modules of one layer: block, norm, projection. They never leave this package.

What it does not do: positions, masks and caches, which a block is handed as `rotation` and
`attend`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxrlhf.models import lora, rope
from jaxrlhf.models.config import TransformerConfig

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=True),
}


TURNED = "kernel_turned"  # a parameter in place of "kernel": the same numbers as [O, I]
LARGE = 1 << 17  # numbers in a kernel from which on it is turned for decoding


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream.

    `attend(q, k, v) -> (out, extra)` is what differs between training, prefill and decode; `extra`
    is handed back beside the new residual stream. `rotation` None leaves positions out. With `last`
    only so many last columns are queries and go on; all are keys and values.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, rotation, attend, last=None):
        config = self.config
        before = config.norm_placement != "post"
        after = config.norm_placement != "pre"

        def norm(name, y, wanted):
            return Norm(config, name=name)(y) if wanted else y

        y, extra = _attention(config, norm("attn_norm", x, before), rotation, attend, last)
        y = norm("attn_post_norm", y, after)
        x = _tail(x, last)
        if config.parallel_residual:
            return x + y + _mlp(config, norm("mlp_norm", x, before)), extra
        x = x + y
        y = _mlp(config, norm("mlp_norm", x, before))
        return x + norm("mlp_post_norm", y, after), extra


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32, given in the compute dtype."""

    config: TransformerConfig
    rms: bool = False  # whatever the config says

    @nn.compact
    def __call__(self, x):
        config, shape = self.config, (x.shape[-1],)
        centred = config.norm == "layer" and not self.rms
        ones = (1,) * (x.ndim - 1)
        x = x.astype(jnp.float32)
        if centred:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x = x * lax.rsqrt(variance + config.norm_epsilon)
        scale = _param(self, "scale", nn.initializers.constant(1 - config.norm_offset), shape)
        scale = scale.astype(jnp.float32)
        if config.norm_offset:
            scale = config.norm_offset + scale
        x = x * scale.reshape(*ones, -1)
        if centred:
            bias = _param(self, "bias", nn.initializers.zeros, shape)
            x = x + bias.astype(jnp.float32).reshape(*ones, -1)
        return x.astype(config.dtype)


class Projection(nn.Module):
    """A linear map of the last axis in the compute dtype, with the adapter that lies beside it.

    The leading axes are flattened first: on CPU the backward pass of a 2-D matmul is 20 % faster.
    For decoding the kernel may lie turned over, see `turned`.
    An adapter (`lora.py`) adds s·(x·A)·B. It is never made here: it is attached, or it is not.
    """

    config: TransformerConfig
    features: int
    use_bias: bool
    std: float | None = None

    @nn.compact
    def __call__(self, x):
        config = self.config
        normal = nn.initializers.normal(self.std or config.initializer_range)
        if self.has_variable("params", TURNED):
            kernel = self.get_variable("params", TURNED).T
        else:
            kernel = _param(self, "kernel", normal, (x.shape[-1], self.features))
        flat = x.reshape(-1, x.shape[-1])
        y: jax.Array = product(flat, kernel.astype(config.dtype))
        if self.has_variable("params", lora.A):
            y = y + self._adapted(flat)
        if self.use_bias:
            bias = _param(self, "bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(config.dtype)[None, :]
        return y.reshape(*x.shape[:-1], self.features)

    def _adapted(self, x):
        names = (lora.A, lora.B, lora.SCALE)
        a, b, scale = (self.get_variable("params", name) for name in names)
        if b is None or scale is None:
            raise ValueError(f"{self.name} has {lora.A} without {lora.B} or {lora.SCALE}")
        dtype = self.config.dtype
        return (x @ a.astype(dtype)) @ b.astype(dtype) * scale.astype(dtype)


def _param(module, name, initializer, shape):
    """`module.param`, which traces the initialiser each time, to compare shapes; this does not."""
    if not module.has_variable("params", name):
        return module.param(name, initializer, shape)
    found = module.get_variable("params", name)
    if found.shape != shape:
        where = "/".join((*module.path, name))
        raise ValueError(f"{where} has shape {found.shape}, the model needs {shape}")
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, dtype: jax.typing.DTypeLike | None = None):
    """`x @ kernel`, `[N, I]` by `[I, O]`, in `dtype` (by default that of the two).

    On a CPU its gradient is made from a copy of x that is turned over: the product of rows with
    columns runs at up to twice the rate of one that contracts the first axis of both.
    """
    return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _product_forward(x, kernel, dtype):
    # Nothing is kept, or made, for a kernel that does not train.
    y = product(x.value, kernel.value, dtype)
    return y, (x.value if kernel.perturbed else None, kernel.value)


def _product_backward(dtype, kept, grad):
    x, kernel = kept
    across = jnp.matmul(grad, kernel.T).astype(kernel.dtype)
    if x is None:
        return across, None
    lying = x.T
    if jax.default_backend() == "cpu":  # the barrier keeps XLA from turning it back
        lying = lax.optimization_barrier(lying)
    return across, jnp.matmul(lying, grad).astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def turned(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of layers with their large kernels turned over, for products with few rows.

    On a CPU a kernel `[O, I]` that comes from memory is read at up to twice the rate of `[I, O]`,
    row by row; one that stays in the caches is not. Elsewhere nothing is changed.
    """
    if jax.default_backend() != "cpu":
        return params
    found = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            found[name] = turned(leaf)
        elif name == "kernel" and leaf.size >= LARGE:
            found[TURNED] = lax.optimization_barrier(leaf.T)  # a copy, whatever XLA thinks of it
        else:
            found[name] = leaf
    return found


# ------------------------------------------------- branches of a block, called inside its scope


def _attention(config, x, rotation, attend, last):
    head_dim = config.head_dim

    def heads(name, x, num_heads):
        y = Projection(config, num_heads * head_dim, config.qkv_bias, name=f"{name}_proj")(x)
        if config.qk_norm == "full" and name != "v":
            y = Norm(config, rms=True, name=f"{name}_norm")(y)
        y = y.reshape(*y.shape[:2], num_heads, head_dim)
        if config.qk_norm == "head" and name != "v":
            y = Norm(config, rms=True, name=f"{name}_norm")(y)
        return y

    q = heads("q", _tail(x, last), config.num_heads)
    k = heads("k", x, config.num_kv_heads)
    v = heads("v", x, config.num_kv_heads)
    if rotation is not None:
        q, k = rope.rotate(q, _tail(rotation, last)), rope.rotate(k, rotation)
    y, extra = attend(q, k, v)
    y = y.reshape(*y.shape[:2], config.num_heads * head_dim)
    std = _residual_std(config)
    return Projection(config, config.d_model, config.o_bias, std, name="o_proj")(y), extra


def _tail(tree, columns):
    """The last columns of arrays `[B, T, ...]`; None is all of them."""
    return tree if columns is None else jax.tree.map(lambda x: x[:, -columns:], tree)


def _mlp(config, x):
    activation = _ACTIVATIONS[config.mlp]
    y = Projection(config, config.d_ff, config.mlp_bias, name="up_proj")(x)
    if config.mlp in ("swiglu", "geglu"):
        gate = Projection(config, config.d_ff, config.mlp_bias, name="gate_proj")(x)
        y = activation(gate) * y
    else:
        y = activation(y)
    std = _residual_std(config)
    return Projection(config, config.d_model, config.mlp_bias, std, name="down_proj")(y)


def _residual_std(config):
    return config.initializer_range / math.sqrt(2 * config.num_layers)
