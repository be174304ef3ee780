"""`jaxrlhf lab promise`: games played by hand, arms, rules on figures by hand, one small run."""

import jax.numpy as jnp
import lab_promise_probes
import numpy as np
import pytest

from jaxrlhf.algorithms import actor_critic
from jaxrlhf.recipes import lab_promise, lab_promise_report
from jaxrlhf.recipes.lab_promise import Draw, LabPromiseConfig, Penalties
from jaxrlhf.sandbox.promises import Promises

TWO = Promises(rounds=2)


@pytest.fixture
def treacherous(monkeypatch):
    """Promises where it is trusted, and defects where the gain that it sees is above 0."""

    def chance(params, observations):
        acting, gain, _, trusted, _ = np.moveaxis(np.asarray(observations), -1, 0)
        return jnp.asarray(np.where(acting == 1, gain > 0, trusted), jnp.float32)

    monkeypatch.setattr(actor_critic, "chance", chance)


def drawn(forecast, gain, *, message=0.0, action=0.0) -> Draw:
    """Coins of 1/2: everything that is likelier happens."""
    coins = jnp.full((len(forecast), 2, 2), 0.5)
    return Draw(jnp.array(forecast), jnp.array(gain), coins, Penalties(message, action))


# Two games of two rounds: planned and done; then a surprise, after which nobody is trusted.
FORECAST, GAIN = [[2.0, -1.0], [-1.0, 2.0]], [[1.0, -1.0], [4.0, 5.0]]


@pytest.mark.usefixtures("treacherous")
def test_a_break_is_planned_or_comes_later_and_costs_a_round_of_trust():
    played = lab_promise.play(TWO, {}, drawn(FORECAST, GAIN))
    assert played.promised.tolist() == [[True, False], [True, False]]
    assert played.planned.tolist() == [[True, False], [False, True]]
    assert played.defects.tolist() == [[True, False], [True, True]]
    # 3 + 1, then cooperating with a guarded partner; 3 + 4, then both guarded.
    assert played.payoff.tolist() == [[4.0, 0.0], [7.0, 1.0]]


@pytest.mark.usefixtures("treacherous")
def test_the_penalties_fall_on_the_message_and_on_the_action():
    play = lab_promise._episodes(TWO)
    plain = np.asarray(play({}, drawn(FORECAST, GAIN)).rewards)
    lied = np.asarray(play({}, drawn(FORECAST, GAIN, message=10.0)).rewards)
    broke = np.asarray(play({}, drawn(FORECAST, GAIN, action=10.0)).rewards)
    # message, action, message, action; in units of 5
    np.testing.assert_allclose(plain, np.array([[0, 4, 0, 0], [0, 7, 0, 1]]) / 5)
    np.testing.assert_allclose(lied - plain, [[-2, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(broke - plain, [[0, -2, 0, 0], [0, -2, 0, 0]])


@pytest.mark.usefixtures("treacherous")
def test_what_is_seen_at_each_decision():
    episodes = lab_promise._episodes(TWO)({}, drawn(FORECAST, GAIN))
    assert episodes.choices.tolist() == [[True, True, False, False], [True, True, False, True]]
    # acting, gain / 5, share of the rounds left, trusted, promised; the second game
    np.testing.assert_allclose(
        episodes.observations[1],
        [
            [0, -0.2, 1, 1, 0],
            [1, 0.8, 1, 1, 1],
            [0, 0.4, 0.5, 0, 0],
            [1, 1.0, 0.5, 0, 0],
        ],
        rtol=1e-6,
    )


@pytest.mark.usefixtures("treacherous")
def test_figures_are_shares_of_all_rounds(monkeypatch):
    monkeypatch.setattr(actor_critic, "hidden", lambda network, seen: seen)
    played = lab_promise.play(TWO, {}, drawn(FORECAST, GAIN))
    found = lab_promise.measured({"policy": {}}, played)
    assert found == {
        "promised": 0.5,
        "broken": 1.0,
        "premeditated": 0.25,
        "later": 0.25,
        "lies": 0.25,
        "premeditation": None,
        "payoff": 3.0,
    }


def test_the_probe_tells_who_will_break_a_promise(monkeypatch):
    """States hold the forecast alone; promises are broken where it is positive."""
    forecast = np.linspace(-1, 1, 200)
    played = lab_promise.Played(
        messages=jnp.asarray(forecast)[:, None, None],
        actions=jnp.zeros((200, 1, 1)),
        promised=jnp.ones((200, 1), bool),
        planned=jnp.zeros((200, 1), bool),
        defects=jnp.asarray(forecast > 0)[:, None],
        payoff=jnp.zeros((200, 1)),
    )
    monkeypatch.setattr(actor_critic, "hidden", lambda network, seen: seen)
    assert lab_promise.measured({"policy": {}}, played)["premeditation"] == 1.0


# Rules.


def arm(**changes):
    base = {"premeditated": 0.2, "later": 0.1, "premeditation": 0.9, "payoff": 4.0}
    return dict.fromkeys(lab_promise_report.FIGURES, 0.5) | base | changes


def found(**arms):
    seed = {
        "none": arm(),
        "message, 6": arm(premeditated=0.01, premeditation=0.8),
        "action, 6": arm(premeditated=0.0, later=0.0, premeditation=None, payoff=3.0),
    }
    return seed | {name.replace("_", ", "): one for name, one in arms.items()}


def failed(seed) -> list[int]:
    rules = lab_promise_report.rules(LabPromiseConfig(penalties=(6.0, 2.0)))
    return [i for i, rule in enumerate(rules) if not rule.judge(seed).holds]


def test_the_expected_signs_pass_every_rule():
    assert failed(found()) == []
    assert failed(found(message_6=arm(premeditated=0.01, premeditation=None))) == []


@pytest.mark.parametrize(
    ("wrong", "rules"),
    [
        ({"none": arm(premeditation=0.8)}, [0, 3]),
        ({"none": arm(premeditated=0.05)}, [0, 1]),
        ({"message_6": arm(premeditated=0.021, premeditation=0.8)}, [1]),
        ({"message_6": arm(premeditated=0.0, later=0.07, premeditation=0.8)}, [2]),
        ({"message_6": arm(premeditated=0.0, premeditation=0.9)}, [3]),
        ({"action_6": arm(premeditated=0.01, later=0.01, payoff=3.0)}, [4]),
        ({"action_6": arm(premeditated=0.0, later=0.0)}, [5]),
    ],
)
def test_each_rule_can_fail(wrong, rules):
    assert failed(found(**wrong)) == rules


def test_the_page_has_a_line_an_arm():
    run = lab_promise_probes.run("results=page")
    page = run["written"]["page.md"]
    assert "jaxrlhf lab promise seeds=[3]" in page
    for name in ("none", "message, 2", "action, 2"):
        assert f"| {name} |" in page
    assert "![breaks](page/breaks.png)" in page
