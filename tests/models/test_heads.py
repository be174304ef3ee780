"""Scalar heads: where the score is read, what is shared, what gain and bias do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import inference
from jaxrlhf.models import (
    PARAM_AXES,
    heads,
    make_classifier,
    make_lm,
    make_scalar_model,
    transformer_config,
)


@pytest.fixture(scope="module", params=["gpt2", "llama_gqa"])
def scalar(request, models):
    request_lm = lm, lm_params = models[request.param]
    model = make_scalar_model(lm.config)
    params = model.init(jax.random.key(1), lm_params)
    return (
        model._replace(
            apply=jax.jit(model.apply, static_argnames="last"), scores=jax.jit(model.scores)
        ),
        params,
        *request_lm,
    )


def test_values_are_the_head_on_the_hidden_states(scalar, tokens, full):
    model, params, lm, lm_params = scalar
    params = heads.affine(params, 1.0, 0.25)
    values = model.apply(params, tokens, full)
    expected = lm.hidden(lm_params, tokens, full) @ params["head"]["kernel"] + 0.25
    assert values.shape == tokens.shape and values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_array_equal(
        values, heads.read(params["head"], lm.hidden(lm_params, tokens, full))
    )


@pytest.mark.parametrize("widths", [(0, 0), (3, 0), (0, 7), (2, 5)])
def test_the_score_is_the_value_at_the_last_real_token(scalar, tokens, full, widths):
    model, params, *_ = scalar
    lengths = jnp.array([10, 6, 1])
    mask = jnp.arange(10)[None, :] < lengths[:, None]
    expected = model.apply(params, tokens, full)[jnp.arange(3), lengths - 1]
    padded, mask = (jnp.pad(x, ((0, 0), widths)) for x in (tokens, mask))
    scores = model.scores(params, padded, mask)
    assert scores.shape == (3,) and scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    # nothing after the last real token leaks, not even an id out of range (invariant A6)
    garbage = jnp.where(mask, padded, 99)
    np.testing.assert_array_equal(scores, model.scores(params, garbage, mask))


def test_an_empty_row_scores_zero(scalar, tokens, full):
    model, params, *_ = scalar
    params = heads.affine(params, 1.0, 3.0)
    scores = model.scores(params, tokens, full.at[1].set(False))
    assert scores[1] == 0 and jnp.all(scores[jnp.array([0, 2])] != 0)


def test_affine(scalar, tokens, full):
    model, params, *_ = scalar
    params = heads.affine(params, 1.0, -0.3)  # so that a bias scaled by the gain shows
    before = model.scores(params, tokens, full)
    after = model.scores(heads.affine(params, 2.5, -1.0), tokens, full)
    np.testing.assert_allclose(after, 2.5 * before - 1.0, atol=1e-5)


def test_mean_pooling_is_the_mean_of_the_values_of_real_tokens(models, tokens, full):
    lm, lm_params = models["llama"]
    model = make_scalar_model(lm.config, pooling="mean")
    params = model.init(jax.random.key(0), lm_params)
    mask = np.array(full)
    mask[0, :2] = False  # left padding
    mask[1, -2:] = False  # right padding
    mask[2] = False  # nothing at all
    mask = jnp.asarray(mask)
    values = np.asarray(model.apply(params, tokens, mask))
    scores = np.asarray(model.scores(params, tokens, mask))
    for row, real in enumerate(np.asarray(mask)):
        expected = values[row][real].mean() if real.any() else 0.0
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5, atol=1e-6)
    last = make_scalar_model(lm.config)
    assert last != model and not np.allclose(last.scores(params, tokens, mask)[:2], scores[:2])


def test_initial_head():
    # d_model 400: the variance is 1/401, so the standard deviation is 0.0499; its standard error
    # is 1/sqrt(800) = 3.5 % of it
    sizes = dict(vocab_size=5, num_layers=1, num_heads=1, d_model=400, d_ff=4, max_positions=4)
    model = make_scalar_model(transformer_config("gpt2", **sizes))
    head = jax.jit(model.init)(jax.random.key(0))["head"]
    assert jnp.std(head["kernel"]) == pytest.approx(0.0499, rel=0.12)
    assert head["bias"] == 0 and head["bias"].shape == ()
    zero = jax.jit(lambda key: model.init(key, zero=True))(jax.random.key(0))["head"]
    assert not zero["kernel"].any() and not zero["bias"].any()


def test_init_shares_the_language_model_without_its_output_head(models):
    lm, lm_params = models["llama"]
    model = make_scalar_model(lm.config)
    params = model.init(jax.random.key(0), lm_params)
    assert set(params) == {"lm", "head"} and "lm_head" in lm_params
    assert set(params["lm"]) == set(lm_params) - {"lm_head"}
    source = {name: lm_params[name] for name in params["lm"]}
    # no second copy of the weights; a training state makes its own (`algorithms.base.new_state`)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, params["lm"], source))


@pytest.mark.parametrize("make", [make_scalar_model, make_classifier])
def test_without_lm_params_the_trunk_is_fresh_and_every_leaf_has_axes(make):
    sizes = dict(vocab_size=5, num_layers=2, num_heads=2, d_model=8, d_ff=4, max_positions=4)
    model = make(transformer_config("llama", **sizes))
    params = jax.eval_shape(model.init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [part.key for part in path]
        assert leaf.ndim == len(PARAM_AXES["/".join(names[-2:])]) + ("blocks" in names), names
        assert leaf.dtype == jnp.float32


def test_without_final_norm_the_score_is_unbounded(models, tokens, full):
    lm, lm_params = models["llama"]
    bounded, unbounded = (make_scalar_model(lm.config, final_norm=flag) for flag in (True, False))
    params = bounded.init(jax.random.key(0), lm_params)
    grown = jax.tree.map(lambda x: x, params)
    for name in ("o_proj", "down_proj"):  # a residual stream some hundred times longer
        kernel = grown["lm"]["blocks"][name]["kernel"]
        grown["lm"]["blocks"][name] = {"kernel": kernel * 1000}

    def size(model, params):
        return float(jnp.abs(jax.jit(model.scores)(params, tokens, full)).max())

    assert size(bounded, grown) < 20 and size(unbounded, grown) > 100 * size(unbounded, params)
    stream = lm.hidden(lm_params, tokens, full, final_norm=False)
    expected = stream @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(unbounded.apply(params, tokens, full), expected, atol=1e-4)


def test_bfloat16_trunk_gives_float32_scores(models, tokens, full):
    config = models["llama"][0].config
    low = transformer_config("llama", **{**config.__dict__, "dtype": "bfloat16"})
    params = make_scalar_model(low).init(jax.random.key(0), models["llama"][1])
    assert make_scalar_model(low).scores(params, tokens, full).dtype == jnp.float32
    assert make_lm(low).hidden(params["lm"], tokens, full).dtype == jnp.bfloat16


def test_the_same_config_gives_the_same_object(models):
    config = models["gpt2"][0].config
    assert make_scalar_model(config) is make_scalar_model(config)
    assert make_scalar_model(config) is make_scalar_model(config, final_norm=True, pooling="last")
    assert make_scalar_model(config, final_norm=False) != make_scalar_model(config)


@pytest.fixture(scope="module")
def classifier(models):
    """Three classes on llama; a kernel that is not zero."""
    lm, lm_params = models["llama"]
    model = make_classifier(lm.config, classes=3)
    params = model.init(jax.random.key(1), lm_params)
    kernel = jax.random.normal(jax.random.key(2), params["classifier"]["kernel"].shape)
    return model, {**params, "classifier": {"kernel": kernel}}


def test_every_class_is_a_scalar_model_of_its_own(classifier, tokens, full):
    model, params = classifier
    mask = jnp.asarray(np.arange(10)[None, :] < np.array([10, 6, 1])[:, None])
    for pooling in ("last", "mean"):
        many = make_classifier(model.config, classes=3, pooling=pooling)
        scalar = make_scalar_model(model.config, pooling=pooling)
        logits = many.logits(params, tokens, mask)
        assert logits.shape == (3, 3) and logits.dtype == jnp.float32
        for k in range(3):
            head = {"kernel": params["classifier"]["kernel"][:, k], "bias": jnp.zeros(())}
            one = scalar.scores({"lm": params["lm"], "head": head}, tokens, mask)
            np.testing.assert_allclose(logits[:, k], one, atol=1e-5)
    probs = inference.class_probs(model, params, tokens, mask)
    np.testing.assert_allclose(probs, jax.nn.softmax(model.logits(params, tokens, mask)), atol=1e-6)


def test_a_new_classifier_knows_nothing_and_has_the_trunk_it_is_given(models, tokens, full):
    lm, lm_params = models["llama"]
    model = make_classifier(lm.config)
    params = model.init(jax.random.key(0), lm_params)
    assert not model.logits(params, tokens, full).any()
    assert set(params["lm"]) == set(lm_params) - {"lm_head"}
    assert all(params["lm"][name] is lm_params[name] for name in params["lm"])
    assert make_classifier(lm.config, classes=2, pooling="last") is model


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2's output layer is its embedding
def test_a_head_of_words_gives_the_language_models_logits_of_them(models, tokens, full, name):
    lm, lm_params = models[name]
    model = make_classifier(lm.config, classes=2)
    params = model.init(jax.random.key(0), lm_params, tokens=(3, 1))
    last = lm.logits(lm_params, lm.hidden(lm_params, tokens, full)[:, -1])
    found = model.logits(params, tokens, full)
    np.testing.assert_allclose(found, last[:, jnp.array([3, 1])], atol=1e-5)
    with pytest.raises(ValueError, match="1 tokens for 2 classes"):
        model.init(jax.random.key(0), lm_params, tokens=(3,))
