"""Does training go where the reward points? Bugs can optimise for bad behaviour and look healthy.

Also what a run logs, so that one would see it. The table of all invariants is at the top of
`test_invariants_signal.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from jaxrlhf import loop
from jaxrlhf.algorithms.ppo import Settings, ppo
from jaxrlhf.losses import policy
from jaxrlhf.optim import make_optimizer

SHARED = Settings(value_model="shared", num_ppo_epochs=1)
SAMPLING = tables.sampling()


@functools.cache
def one_update():
    """The compiled update of `SHARED`; reward, reference and rate are not part of it."""
    return tables.ppo_run(SHARED).update


# ------------------------------------------------------------------ A12, B1, B8: direction

ARM, OTHER, ASKED = 2, 3, 4
BANDIT = Settings(value_model="shared", num_ppo_epochs=1, whiten_advantages=False, vf_coef=0.0)
ONE_TOKEN = tables.sampling(max_new_tokens=1, stop_ids=())


def bandit(*, reward: float, beta: float, start: float = 0.0, steps: int = 50) -> np.ndarray:
    """One choice between two arms, 256 at a time by SGD: the share of `ARM` before every step.

    The reference takes either arm; `start` is by how much the policy's logit prefers `ARM`. The
    optimum, π ∝ ref · exp(r / β), is σ(reward / β). Compiled once: β is part of the state, the
    reward of `collect`.
    """

    def reward_fn(rollout):
        return reward * (rollout.tokens[:, -1] == ARM)

    algorithm = bandit_algorithm(reward_fn)
    zero = {"kernel": jnp.zeros(tables.VOCAB), "bias": jnp.zeros(())}
    params = {"policy": two_arms(start), "value": {"head": zero}}
    state = algorithm.init(params, jax.random.key(0))
    state = state._replace(extra={"kl_coef": jnp.float32(beta)})
    shares = []
    for step in range(steps):
        key = jax.random.key(step)
        shares.append(arm_share(state))
        batch, _ = algorithm.collect(state, lambda: CHOICES, key)
        state, _ = bandit_update()(state, batch, key)
    return np.array(shares)


def bandit_algorithm(reward_fn):
    return ppo(tables.LM_TABLE, two_arms(0.0), reward_fn, tables.sgd(2.0), ONE_TOKEN, BANDIT)


@functools.cache
def bandit_update():
    return jax.jit(bandit_algorithm(tables.odd_share).update)


CHOICES = {
    "prompt_tokens": jnp.full((256, 1), ASKED),
    "prompt_mask": jnp.ones((256, 1), bool),
    "row": np.arange(256),
}


def two_arms(logit: float):
    """The other tokens are out of reach."""
    embedding = jnp.full((tables.VOCAB,) * 2, -30.0).at[:, ARM].set(logit).at[:, OTHER].set(0.0)
    return {"embed": {"embedding": embedding}}


def arm_share(state) -> float:
    row = np.asarray(state.params["policy"]["embed"]["embedding"][ASKED], np.float64)
    return float(np.exp(row[ARM]) / np.exp(row).sum())


def test_a_bandit_ends_where_the_coefficient_says():
    """σ(1/β): .8808 and .6225, so more β is less KL; −r mirrors r; without β nearly all of it.

    Tolerance: the mean over the last 20 steps of a walk whose steps have a standard deviation of
    less than .02 around the optimum.
    """
    ends = {beta: bandit(reward=1.0, beta=beta)[-20:].mean() for beta in (0.5, 2.0)}
    assert ends[0.5] == pytest.approx(0.8808, abs=0.03)
    assert ends[2.0] == pytest.approx(0.6225, abs=0.03)
    assert bandit(reward=-1.0, beta=0.5)[-20:].mean() == pytest.approx(1 - 0.8808, abs=0.03)
    assert bandit(reward=1.0, beta=0.0, steps=30)[-1] > 0.95


def test_without_a_reward_the_policy_returns_to_the_reference():
    """From σ(2) = .88 to .5, where it stays: there every reward is 0."""
    shares = bandit(reward=0.0, beta=1.0, start=2.0, steps=30)
    assert shares[0] == pytest.approx(0.8808, abs=1e-3)
    assert shares[0] > shares[1] > shares[2] > 0.49
    assert shares[-1] == pytest.approx(0.5, abs=1e-3)


def test_a_negated_reward_mirrors_the_step():
    """At the reference and with V = 0 the advantages change sign, and with them the whole step."""
    run, steps = tables.ppo_run(SHARED, reference=tables.table(1)), []
    zero = {"kernel": jnp.zeros(tables.VOCAB), "bias": jnp.zeros(())}
    params = {**run.state.params, "value": {"head": zero}}
    run = run._replace(
        state=run.state._replace(params=params),
        batch={**run.batch, "values": jnp.zeros_like(run.batch["values"])},
    )
    for sign in (1, -1):
        batch = {**run.batch, "scores": sign * run.batch["scores"]}
        new, _ = one_update()(run.state, batch, run.key)
        steps.append(new.params["policy"]["embed"]["embedding"])
    start = run.state.params["policy"]["embed"]["embedding"]
    np.testing.assert_allclose(steps[0] - start, start - steps[1], atol=1e-6)
    assert np.max(abs(np.asarray(steps[0] - start))) > 0.05


def test_the_controller_moves_towards_its_target():
    """KL 1.8 against a target of .5: up by 20 % of 8/10,000; KL 0: down by as much."""
    run = tables.RUNS["ppo"]()
    assert run.settings.kl_target == 0.5 and run.settings.kl_horizon == 10_000
    up, metrics = run.update(run.state, run.batch, run.key)
    assert float(metrics["objective/kl_k1"]) > 0.6
    assert float(up.extra["kl_coef"]) == pytest.approx(0.05 * (1 + 0.2 * 8 / 10_000), rel=1e-6)
    at_reference = {**run.batch, "ref_log_probs": run.batch["log_probs"]}
    down, metrics = run.update(run.state, at_reference, run.key)
    assert float(metrics["objective/kl_k1"]) == 0
    assert float(down.extra["kl_coef"]) == pytest.approx(0.05 * (1 - 0.2 * 8 / 10_000), rel=1e-6)
    assert float(metrics["objective/kl_coef"]) == pytest.approx(0.05)  # the one that was used


def test_the_two_readings_of_the_score_agree():
    """The raw score, and what the token rewards add up to without the penalty."""
    run = tables.ppo_run(SHARED)
    _, metrics = one_update()(run.state, run.batch, run.key)
    kl = float(metrics["objective/kl_coef"]) * float(metrics["objective/kl_k1"])
    assert float(metrics["objective/score"]) == pytest.approx(
        float(metrics["objective/score_total"]) + kl, abs=1e-5
    )
    assert float(metrics["objective/score"]) == pytest.approx(float(run.batch["scores"].mean()))


# ------------------------------------------------------------------ D, E


def test_the_tensorflow_epsilon_moves_a_policy_less():
    """The oracle's 3.7e-4 against 2.37e-3, a factor of .156.

    For small steps approx_kl is quadratic in their size. At a gradient of 19 ε, which is what
    the factor implies, the first step is 19/(19 + 1) = .95 of the rate with PyTorch's ε, and with
    √(1 − .999) = .0316 on both sides .6008/1.6008 = .3753 with TensorFlow's: (.3753/.95)² = .156.
    """
    found = {}
    for form in ("torch", "tensorflow"):
        optimizer = make_optimizer(
            learning_rate=1e-2,
            total_steps=1,
            adam_epsilon=1e-5,
            adam_epsilon_form=form,
            max_grad_norm=None,
        )
        logits = jnp.array([[0.3, -0.3]])
        grads = jnp.array([[19e-5, -19e-5]])
        updates, _ = optimizer.update(grads, optimizer.init(logits), logits)
        old, new = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits + updates)
        mask = jnp.ones((1, 2), bool)
        found[form] = float(policy.ratio_stats(new, old, mask, clip_range=0.2).approx_kl)
    assert found["tensorflow"] / found["torch"] == pytest.approx(3.7e-4 / 2.37e-3, rel=0.02)


LOGGED = """
objective/kl_k1 objective/kl_k3 objective/kl_coef objective/entropy objective/score
objective/score_total objective/score_heldout policy/approx_kl policy/clip_fraction
policy/ratio_mean policy/ratio_max policy/entropy value/loss value/explained_variance
value/clip_fraction value/mean value/var returns/mean returns/var rollout/length rollout/eos_rate
rollout/padding rollout/repetition rollout/sampler_logprob_gap
time/generate_s time/score_s time/update_s time/generated_tokens_per_s time/compilations
time/compile_s time/peak_memory_mib
"""


def test_a_run_logs_every_figure():
    """The held-out score is the recipe's evaluation, a hook; every other one comes by itself."""
    rows = []
    algorithm = ppo(
        tables.LM_TABLE, tables.table(4), tables.odd_share, tables.sgd(1.0), SAMPLING, SHARED
    )
    loop.fit(
        algorithm,
        tables.params(SHARED),
        tiny.Cycle([jax.tree.map(np.asarray, tables.prompts())]),
        steps=1,
        seed=0,
        hooks=[lambda step, state, batch: {"objective/score_heldout": 0.5}],
        on_step=lambda step, metrics: rows.append(metrics),
    )
    assert set(LOGGED.split()) <= rows[0].keys()
    assert all(np.isfinite(x) for x in rows[0].values())
