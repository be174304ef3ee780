"""optim.py: clipping, both epsilon forms, the decay mask and the schedules, against numpy."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.optim import OptimizerConfig, decay_mask, make_optimizer, make_schedule

PARAMS = {
    "blocks": {
        "q_proj": {
            "kernel": jnp.asarray([[[1.0, -2.0], [0.5, 3.0]]]),
            "bias": jnp.asarray([[0.1, 0.2]]),
        },
        "attn_norm": {"scale": jnp.asarray([[1.0, 1.0]])},
    },
    "embed": {"embedding": jnp.asarray([[0.3, -0.7]])},
}


def gradients(seed: int, *, scale: float = 1.0) -> dict:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    return jax.tree.map(lambda p: scale * jax.random.normal(next(keys), p.shape), PARAMS)


def train(
    optimizer: optax.GradientTransformation, grads: list[dict], params: dict = PARAMS
) -> dict:
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)  # type: ignore[assignment]
    return params


def numpy_adamw(
    param, grads, *, rates, b1=0.9, b2=0.999, eps=1e-8, form="torch", decay=0.0
) -> np.ndarray:
    """Adam as in its paper, in float64; `tensorflow` is the paper's "epsilon hat" variant."""
    param = np.asarray(param, np.float64)
    m, v = np.zeros_like(param), np.zeros_like(param)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        grad = np.asarray(grad, np.float64)
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        if form == "torch":
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        else:
            step = math.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        param = param - rate * (step + decay * param)
    return param


# Adam.


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_both_epsilon_forms_equal_numpy(form, decay):
    # Gradients of 1e-4 make epsilon 1e-5 matter: .1 against 1 in the denominator at step 1.
    grads = [gradients(seed, scale=1e-4) for seed in range(4)]
    optimizer = make_optimizer(
        learning_rate=0.01,
        total_steps=10,
        lr_scheduler_type="constant",
        weight_decay=decay,
        adam_epsilon=1e-5,
        adam_epsilon_form=form,
        max_grad_norm=None,
    )
    after = train(optimizer, grads)
    for keys in (("blocks", "q_proj", "kernel"), ("blocks", "q_proj", "bias")):
        leaf, own, result = PARAMS, grads, after
        for key in keys:
            leaf, own, result = leaf[key], [g[key] for g in own], result[key]
        expected = numpy_adamw(
            leaf,
            own,
            rates=[0.01] * 4,
            eps=1e-5,
            form=form,
            decay=decay if keys[-1] == "kernel" else 0.0,
        )
        # float32 has 1 - .999 right to 5e-5, so one step of .01 may be off by 5e-7.
        np.testing.assert_allclose(result, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
def test_a_mean_in_bfloat16_is_float32_but_for_its_rounding(form):
    """Eight bits of mantissa: each step may be off by 2^-8 of the mean, so by .4 % of .01."""
    grads = [gradients(seed) for seed in range(4)]
    kept, made = {}, {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(
            learning_rate=0.01, total_steps=10, adam_epsilon_form=form, adam_mu_dtype=dtype
        )
        state = optimizer.init(PARAMS)
        kept[dtype] = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
        made[dtype] = train(optimizer, grads)
    assert kept == {"float32": {"float32"}, "bfloat16": {"bfloat16", "float32"}}
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), made["float32"], made["bfloat16"])
    assert 0 < max(jax.tree.leaves(gaps)) < 4 * 0.01 * 2**-7


def test_the_tensorflow_form_starts_slower():
    # One step, g = 1e-5 = eps. torch: g/(|g| + eps) = 1/2. TensorFlow: √v = g·√(1−b2) = .0316·g,
    # so the step is √.001·g/(√.001·g + eps) = .0316/1.0316 = .03065.
    steps = {}
    for form in ("torch", "tensorflow"):
        optimizer = make_optimizer(
            learning_rate=1.0,
            total_steps=1,
            adam_epsilon=1e-5,
            adam_epsilon_form=form,
            max_grad_norm=None,
        )
        steps[form] = -float(
            train(optimizer, [{"w": jnp.asarray(1e-5)}], {"w": jnp.asarray(0.0)})["w"]
        )
    assert steps["torch"] == pytest.approx(0.5, abs=1e-4)
    assert steps["tensorflow"] == pytest.approx(0.03065, abs=1e-5)


def test_a_zero_rate_leaves_parameters_bit_equal():
    optimizer = make_optimizer(learning_rate=0.0, total_steps=5, weight_decay=0.1)
    after = train(optimizer, [gradients(seed, scale=100.0) for seed in range(3)])
    for before, now in zip(jax.tree.leaves(PARAMS), jax.tree.leaves(after), strict=True):
        assert np.asarray(before).tobytes() == np.asarray(now).tobytes()


def test_it_works_inside_jit_and_keeps_the_tree():
    optimizer = make_optimizer(learning_rate=0.1, total_steps=5, weight_decay=0.1)
    state = optimizer.init(PARAMS)
    updates, new_state = jax.jit(optimizer.update)(gradients(0), state, PARAMS)
    eager, _ = optimizer.update(gradients(0), state, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, eager)
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, new_state))
    assert before == after


# Clipping.


def clipped(grads: dict, max_grad_norm: float) -> dict:
    """The gradient that Adam sees: with b1 = b2 = 0 its first moment is just that."""
    optimizer = make_optimizer(learning_rate=1.0, total_steps=1, max_grad_norm=max_grad_norm)
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    moments = [s for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s)]
    return jax.tree.map(lambda m: m / 0.1, moments[0].mu)  # mu = (1 - .9) * gradient at step 1


def _is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def test_clipping_bounds_the_norm_and_keeps_the_direction():
    grads = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}  # norm 5, over both leaves
    result = clipped(grads, 1.0)
    norm = math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(result)))
    assert norm <= 1.0 + 1e-6
    np.testing.assert_allclose(result["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(result["b"], [[0.8]], rtol=1e-6)


def test_a_small_gradient_is_not_scaled_up():
    grads = {"a": jnp.asarray([0.3, 0.4])}  # norm .5
    np.testing.assert_allclose(clipped(grads, 1.0)["a"], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize("form", ["torch", "tensorflow"])
def test_clipping_comes_before_adam(form):
    # Gradients 1 then 1000. Clipped to 1 first, Adam sees 1, 1 and its second step is 1. Unclipped,
    # m̂ = (.09 + 100)/.19 = 526.8 and v̂ = (.999e-3 + 1000)/.001999 = 500,251: the step is .745, and
    # clipping that to 1 afterwards would leave it. (With eps = 1e-8 both forms agree to 1e-6.)
    optimizer = make_optimizer(
        learning_rate=1.0,
        total_steps=10,
        lr_scheduler_type="constant",
        adam_epsilon_form=form,
        max_grad_norm=1.0,
    )
    grads = [{"w": jnp.asarray(1.0)}, {"w": jnp.asarray(1000.0)}]
    after = train(optimizer, grads, {"w": jnp.asarray(0.0)})
    assert float(after["w"]) == pytest.approx(-2.0, abs=1e-4)


# Decay.


def test_decay_is_for_matrices_only():
    assert decay_mask(PARAMS) == {
        "blocks": {"q_proj": {"kernel": True, "bias": False}, "attn_norm": {"scale": False}},
        "embed": {"embedding": False},
    }
    assert decay_mask({"other": {"scale": 0, "bias": 0, "kernel": 0}}) == {
        "other": {"scale": False, "bias": False, "kernel": True}
    }
    head = {"lm": {"lm_head": {"kernel": 0}, "final_norm": {"bias": 0}}, "head": {"kernel": 0}}
    assert decay_mask(head) == {
        "lm": {"lm_head": {"kernel": True}, "final_norm": {"bias": False}},
        "head": {"kernel": True},
    }


def test_decay_acts_without_a_gradient_and_only_where_it_should():
    optimizer = make_optimizer(
        learning_rate=0.5, total_steps=9, lr_scheduler_type="constant", weight_decay=0.1
    )
    after = train(optimizer, [jax.tree.map(jnp.zeros_like, PARAMS)])
    kernel = PARAMS["blocks"]["q_proj"]["kernel"]
    np.testing.assert_allclose(after["blocks"]["q_proj"]["kernel"], 0.95 * kernel, rtol=1e-6)
    for path in (
        ("blocks", "q_proj", "bias"),
        ("blocks", "attn_norm", "scale"),
        ("embed", "embedding"),
    ):
        before, now = PARAMS, after
        for key in path:
            before, now = before[key], now[key]
        np.testing.assert_array_equal(before, now)


# Schedules.


def rates(kind: str, *, total: int, warmup: int, upto: int) -> list[float]:
    schedule = make_schedule(
        learning_rate=2.0, total_steps=total, warmup_steps=warmup, lr_scheduler_type=kind
    )
    return [float(schedule(step)) for step in range(upto)]


def test_schedules_are_those_of_hugging_face():
    # transformers' formulas: warm-up step/warmup; linear (total - step)/(total - warmup); cosine
    # (1 + cos(π·progress))/2 with progress = (step - warmup)/(total - warmup); all times 2.
    assert rates("linear", total=6, warmup=2, upto=8) == [0, 1, 2, 1.5, 1, 0.5, 0, 0]
    assert rates("linear", total=4, warmup=0, upto=6) == [2, 1.5, 1, 0.5, 0, 0]
    assert rates("constant_with_warmup", total=6, warmup=4, upto=6) == [0, 0.5, 1, 1.5, 2, 2]
    assert rates("constant", total=3, warmup=0, upto=5) == [2] * 5
    cosine = rates("cosine", total=6, warmup=2, upto=8)
    expected = [0, 1, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0, 0]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_rate_is_exactly_zero_at_the_end(kind):
    for total, warmup in ((1, 0), (7, 3), (1000, 999), (12_345, 0), (5, 5)):
        schedule = make_schedule(
            learning_rate=3e-4, total_steps=total, warmup_steps=warmup, lr_scheduler_type=kind
        )
        assert float(schedule(total)) == 0.0
        assert total == warmup or float(schedule(total - 1)) > 0.0


def test_the_schedule_reaches_the_updates():
    optimizer = make_optimizer(learning_rate=1.0, total_steps=4, max_grad_norm=None)
    params = {"w": jnp.asarray(0.0)}
    state = optimizer.init(params)
    sizes = []
    for _ in range(5):  # a constant gradient gives Adam steps of 1
        updates, state = optimizer.update({"w": jnp.asarray(2.0)}, state, params)
        sizes.append(-float(updates["w"]))
    np.testing.assert_allclose(sizes, [1, 0.75, 0.5, 0.25, 0], atol=1e-4)


# Errors and the config.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type = 'cosin'.*did you mean 'cosine'"),
        ({"adam_epsilon_form": "tf"}, "adam_epsilon_form = 'tf': must be one of torch, tensorflow"),
        ({"warmup_steps": 11}, "warmup_steps = 11: must be 0 to total_steps, 10"),
        (
            {"warmup_steps": 1, "lr_scheduler_type": "constant"},
            "did you mean 'constant_with_warmup'",
        ),
        ({"total_steps": 0}, "total_steps = 0"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0: must be above 0, or null"),
    ],
)
def test_bad_settings_are_named(arguments, says):
    with pytest.raises(ConfigError, match=says):
        make_optimizer(**{"learning_rate": 1e-3, "total_steps": 10} | arguments)


def test_the_config_has_the_functions_names_and_defaults():
    parameters = dict(inspect.signature(make_optimizer).parameters)
    parameters.pop("total_steps")
    fields = OptimizerConfig().model_dump()
    assert list(fields) == [name for name in OptimizerConfig.model_fields if name in parameters]
    assert set(fields) == set(parameters)
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert fields[name] == parameter.default, name


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"lr_scheduler_type": "cosine"},
        {"warmup_steps": 2},
        {"weight_decay": 0.5},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.5},
        {"adam_epsilon": 1e-3},
        {"adam_epsilon_form": "tensorflow"},
        {"max_grad_norm": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_has_an_effect(change):
    grads = [gradients(0, scale=1e-3), gradients(1, scale=10.0), gradients(2)]
    base = {"learning_rate": 0.01, "adam_epsilon": 1e-5}
    results = []
    for fields in (base, base | change):
        config = OptimizerConfig(**fields)
        results.append(train(make_optimizer(**config.model_dump(), total_steps=5), grads))
    kernels = [result["blocks"]["q_proj"]["kernel"] for result in results]
    assert float(jnp.max(jnp.abs(kernels[0] - kernels[1]))) > 1e-5
