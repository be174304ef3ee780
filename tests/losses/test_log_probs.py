"""Log-probs and entropy against float64 numpy; the chunked form against the plain one."""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxrlhf.losses import divergences, log_probs, masked

B, T, D, V = 2, 5, 4, 13


def numpy_stats(logits: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = logits.astype(np.float64)
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return picked, -(np.exp(log_p) * log_p).sum(-1)


@pytest.fixture
def batch() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """hidden [B, T, D], kernel [D, V], bias [V], tokens [B, T]"""
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (rng.normal(size=s).astype("f4") for s in ((B, T, D), (D, V), (V,)))
    return (
        jnp.array(hidden),
        jnp.array(kernel),
        jnp.array(bias),
        jnp.array(rng.integers(V, size=(B, T))),
    )


def test_shift_moves_predictions_onto_their_token() -> None:
    x = jnp.arange(12).reshape(1, 4, 3)
    out = log_probs.shift(x)
    assert out.dtype == x.dtype and out.shape == x.shape
    np.testing.assert_array_equal(out[0], [[0, 0, 0], [0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert log_probs.shift(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_from_logits_equals_numpy(temperature: float, dtype: jnp.dtype) -> None:
    rng = np.random.default_rng(1)
    logits = jnp.array(3 * rng.normal(size=(B, T, V)), dtype)
    tokens = rng.integers(V, size=(B, T))
    stats = jax.jit(log_probs.from_logits)(logits, tokens, temperature=temperature)
    expected = numpy_stats(np.asarray(logits, np.float64) / temperature, tokens)
    for ours, numpys in zip(stats, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, numpys, atol=2e-6)


def test_gradients_are_the_textbook_ones() -> None:
    # d log p_y / dz_v = 1[v = y] − p_v and dH / dz_v = −p_v (log p_v + H), over the temperature.
    p = np.array([0.5, 0.3, 0.2])
    entropy = -(p * np.log(p)).sum()
    z = jnp.log(jnp.array(p, jnp.float32)) * 0.7  # so that softmax(z / .7) = p
    token = jnp.array(1)
    stats = jax.jit(jax.jacobian(lambda z: log_probs.from_logits(z, token, temperature=0.7)))
    of_log_prob, of_entropy = stats(z)
    np.testing.assert_allclose(of_log_prob, (np.eye(3)[1] - p) / 0.7, atol=1e-6)
    np.testing.assert_allclose(of_entropy, -p * (np.log(p) + entropy) / 0.7, atol=1e-6)


def test_large_logits_keep_their_digits() -> None:
    """Integer logits around 4096 are exact in float32, so the offset must cost nothing."""
    logits = jnp.array([[0.0, 1.0, 3.0]])
    stats = jax.jit(log_probs.from_logits)
    near, far = (stats(logits + c, jnp.array([1])) for c in (0.0, 4096.0))
    np.testing.assert_array_equal(near.log_probs, far.log_probs)
    np.testing.assert_array_equal(near.entropy, far.entropy)
    chunked = jax.jit(
        lambda kernel: log_probs.chunked(jnp.ones((1, 1)), kernel, jnp.array([1]), chunk_size=2)
    )
    far = chunked(logits + 4096.0)
    np.testing.assert_allclose(near.log_probs, far.log_probs, atol=1e-6)
    np.testing.assert_allclose(near.entropy, far.entropy, atol=1e-6)


def test_a_filtered_token_has_no_probability_and_breaks_nothing() -> None:
    """-inf logits, as top-k leaves them: the others are renormalised, the entropy stays finite."""
    logits = jnp.array([jnp.log(3.0), -jnp.inf, 0.0])
    from_logits = jax.jit(log_probs.from_logits)

    def entropy(z: jax.Array, temperature: jax.Array) -> jax.Array:
        return log_probs.from_logits(z, jnp.array(0), temperature=temperature).entropy

    stats = from_logits(logits, jnp.array(0))
    np.testing.assert_allclose(stats.log_probs, np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(stats.entropy, -0.75 * np.log(0.75) - 0.25 * np.log(0.25), rtol=1e-6)
    assert float(from_logits(logits, jnp.array(1)).log_probs) == -np.inf
    gradients = jax.jit(jax.grad(entropy, (0, 1)))(logits, jnp.float32(0.9))
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_rows_and_labels_that_mean_nothing_stay_where_they_are() -> None:
    rng = np.random.default_rng(2)
    logits, tokens = rng.normal(size=(4, V)).astype("f4"), np.array([1, 2, -100, V])
    logits[1, 3] = np.nan
    mask = np.array([True, False, False, False])

    def loss(logits: jax.Array) -> jax.Array:
        stats = log_probs.from_logits(logits, tokens)
        return masked.mean(stats.log_probs + stats.entropy, mask)

    stats = jax.jit(log_probs.from_logits)(logits, tokens)
    np.testing.assert_array_equal(np.isnan(stats.log_probs), ~mask)
    grad = jax.jit(jax.value_and_grad(loss))
    value, gradient = grad(logits)
    alone = grad(np.where(mask[:, None], logits, np.float32(0.0)))
    np.testing.assert_array_equal(value, alone[0])
    np.testing.assert_array_equal(gradient, alone[1])
    assert not np.any(np.asarray(gradient)[1:])


def test_same_policy_means_no_divergence() -> None:
    """Invariant A1, for all estimators at once: the same logits give exactly 0 for every token."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(B, 7 + T, V)).astype("f4")
    tokens = rng.integers(V, size=(B, 7 + T))

    @jax.jit
    def score(logits: jax.Array, tokens: jax.Array, temperature: float) -> jax.Array:
        logits = log_probs.shift(logits)
        return log_probs.from_logits(logits, tokens, temperature=temperature).log_probs

    for temperature, padding in itertools.product((0.5, 0.7, 1.0, 1.3), (1, 3, 7)):
        real = np.broadcast_to(np.arange(7 + T) >= padding, tokens.shape)
        padded = np.where(real, tokens, -100)
        ours, ref = (score(x, padded, temperature) for x in (logits, logits.copy()))
        for estimator in (divergences.k1, divergences.k2, divergences.k3):
            assert not np.asarray(estimator(ours, ref))[real].any()
        exact = jax.jit(divergences.exact)(logits, logits.copy(), temperature=temperature)
        assert not np.asarray(exact).any()


@pytest.mark.parametrize(
    ("chunk_size", "extras"),
    [
        (1, {}),
        (5, {"temperature": 0.7}),  # 13 columns in chunks of 5, 5, 3
        (5, {"bias": True, "logit_cap": 2.0}),
        (V + 7, {"bias": True, "temperature": 1.3}),
    ],
)
def test_chunked_is_from_logits_in_value_and_gradient(
    batch: tuple[jax.Array, ...], chunk_size: int, extras: dict
) -> None:
    hidden, kernel, bias, tokens = batch
    temperature, cap = extras.get("temperature", 1.0), extras.get("logit_cap")
    weights = np.random.default_rng(4).normal(size=(2, B, T)).astype("f4")

    def weighted(stats: log_probs.TokenStats) -> tuple[jax.Array, log_probs.TokenStats]:
        return jnp.sum(weights[0] * stats.log_probs + weights[1] * stats.entropy), stats

    def dense(hidden, kernel, bias, temperature):  # type: ignore[no-untyped-def]
        logits = hidden @ kernel + (bias[None, None] if "bias" in extras else 0.0)
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        return weighted(log_probs.from_logits(logits, tokens, temperature=temperature))

    def chunked(hidden, kernel, bias, temperature):  # type: ignore[no-untyped-def]
        return weighted(
            log_probs.chunked(
                hidden,
                kernel,
                tokens,
                temperature=temperature,
                chunk_size=chunk_size,
                bias=bias if "bias" in extras else None,
                logit_cap=cap,
            )
        )

    arguments = hidden, kernel, bias, jnp.float32(temperature)
    grad = lambda fn: jax.jit(jax.grad(fn, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)  # noqa: E731
    expected, ours = grad(dense), grad(chunked)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        # Sums of up to B·T·V terms of size 1, in another order: a few units of 2^-23 each.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


def test_chunked_in_bfloat16_multiplies_there_and_adds_in_float32() -> None:
    rng = np.random.default_rng(5)
    width = 512
    hidden = jnp.array(rng.normal(size=(B, T, width)), jnp.bfloat16)
    kernel = jnp.array(rng.normal(size=(width, V)) / 8, jnp.bfloat16)
    tokens = jnp.array(rng.integers(V, size=(B, T)))

    def dense(hidden: jax.Array, kernel: jax.Array) -> log_probs.TokenStats:
        logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        return log_probs.from_logits(logits, tokens)

    def chunked(hidden: jax.Array, kernel: jax.Array) -> log_probs.TokenStats:
        return log_probs.chunked(hidden, kernel, tokens, chunk_size=4)

    def grad(fn):  # type: ignore[no-untyped-def]
        def total(*x: jax.Array) -> tuple[jax.Array, log_probs.TokenStats]:
            stats = fn(*x)
            return jnp.sum(stats.log_probs + stats.entropy), stats

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))

    gradients, stats = grad(chunked)(hidden, kernel)
    expected, dense_stats = grad(dense)(hidden, kernel)
    for a, b in zip(dense_stats, stats, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(expected, gradients, strict=True):
        assert b.dtype == jnp.bfloat16
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        # bfloat16 keeps 8 bits: one rounding is 2^-9 of the value, and a few of them meet here.
        np.testing.assert_allclose(a, b, atol=2.0**-7 * np.abs(a).max())
    # float32 parameters under bfloat16 activations: the product is still made in bfloat16.
    mixed = jax.jit(chunked)(hidden, kernel.astype(jnp.float32))
    np.testing.assert_array_equal(mixed.log_probs, stats.log_probs)


def sizes(jaxpr: core.Jaxpr) -> Iterator[int]:
    """The number of elements of every array that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(getattr(variable.aval, "shape", ())))
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                yield from sizes(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                yield from sizes(inner)


def test_chunked_never_makes_an_array_of_all_logits() -> None:
    shape, width, vocabulary, chunk = (4, 64), 8, 96, 12
    all_logits = 4 * 64 * vocabulary
    hidden, kernel = jnp.ones((*shape, width)), jnp.ones((width, vocabulary))
    tokens = jnp.zeros(shape, jnp.int32)

    def chunked(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        stats = log_probs.chunked(hidden, kernel, tokens, chunk_size=chunk)
        return jnp.sum(stats.log_probs + stats.entropy)

    def dense(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        stats = log_probs.from_logits(hidden @ kernel, tokens)
        return jnp.sum(stats.log_probs + stats.entropy)

    def largest(fn) -> int:  # type: ignore[no-untyped-def]
        return max(sizes(jax.make_jaxpr(jax.value_and_grad(fn, (0, 1)))(hidden, kernel).jaxpr))

    assert largest(dense) == all_logits  # the measure sees it where it is
    assert largest(chunked) == 4 * 64 * chunk
    # Nor does the compiler, when it fuses and reshapes.
    compiled = jax.jit(jax.value_and_grad(chunked, (0, 1))).lower(hidden, kernel).compile()
    program = compiled.as_text() or ""
    assert "f32[" in program
    assert f"[4,64,{vocabulary}]" not in program and f"[256,{vocabulary}]" not in program


def test_chunked_keeps_a_broken_position_out_of_the_shared_kernel(
    batch: tuple[jax.Array, ...],
) -> None:
    hidden, kernel, _, tokens = batch
    mask = np.arange(T)[None].repeat(B, 0) >= 2

    def loss(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array) -> jax.Array:
        stats = log_probs.chunked(hidden, kernel, tokens, chunk_size=5)
        return masked.mean(stats.log_probs + stats.entropy, mask)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    clean = grad(jnp.where(mask[..., None], hidden, 0.0), kernel, tokens)
    for poison in (jnp.nan, jnp.inf):
        dirty = grad(
            jnp.where(mask[..., None], hidden, poison), kernel, jnp.where(mask, tokens, -100)
        )
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
            np.testing.assert_array_equal(a, b)


def test_vmap_changes_nothing(batch: tuple[jax.Array, ...]) -> None:
    hidden, kernel, _, tokens = batch

    def chunked(hidden: jax.Array, tokens: jax.Array) -> log_probs.TokenStats:
        return log_probs.chunked(hidden, kernel, tokens, chunk_size=4)

    plain = jax.jit(chunked)(hidden, tokens)
    mapped = jax.jit(jax.vmap(jax.vmap(chunked)))(hidden, tokens)
    for a, b in zip(plain, mapped, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_sequence_adds_what_counts() -> None:
    x = jnp.array([[-1.0, -2.0, jnp.nan], [-4.0, -8.0, -16.0]])
    mask = jnp.array([[True, True, False], [False, True, True]])
    np.testing.assert_array_equal(log_probs.sequence(x, mask), [-3.0, -24.0])


def test_wrong_arguments_are_named() -> None:
    logits, tokens = jnp.ones((B, T, V)), jnp.zeros((B, T), jnp.int32)
    with pytest.raises(AssertionError, match=r"tokens.*float32"):
        log_probs.from_logits(logits, tokens.astype(jnp.float32))
    with pytest.raises(AssertionError, match="tokens"):
        log_probs.from_logits(logits, tokens[:, :-1])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        log_probs.chunked(logits, jnp.ones((V, V)), tokens, chunk_size=0)
    with pytest.raises(AssertionError, match=r"log_probs.*bfloat16"):
        log_probs.sequence(jnp.ones((B, T), jnp.bfloat16), jnp.ones((B, T), bool))
