"""`jaxrlhf rounds seeds`: the rule, what arms share, the page; with stand-ins for the rounds."""

import pytest
from rounds_plans import arms

from jaxrlhf.errors import ConfigError, UserError


def test_arms_share_a_first_policy_and_split_the_same_labels():
    ran = arms("arms=[1, 4]", "seeds=[3]", "min_passes=1")["ran"]
    assert [(folder.rsplit("/", 1)[1], *others[:3]) for folder, *others in ran] == [
        ("base", 3, 0, 16),
        ("rounds-1", 3, 1, 12),
        ("rounds-4", 3, 4, 3),
    ]


def test_rounds_split_the_kl_or_go_all_of_it_every_time():
    # 24 nats over 1 and 4 rounds; the first policy has no rounds.
    for split, stops in (("true", [(24, None), (6, None)]), ("false", [(None, 24), (None, 24)])):
        given = ("arms=[1, 4]", "seeds=[3]", "kl=24", f"split_kl={split}", "min_passes=1")
        assert [asked for *_, asked, _ in arms(*given)["ran"]][1:] == stops


@pytest.mark.parametrize(
    ("gold", "verdict"),
    [
        # Gold at KL 25, half-way to the end: half of it; in SDs of 2.0 a quarter. Four rounds
        # against one: 3 * rise / 4.
        (lambda seed, rounds: rounds * 0.27, "PASS"),
        (lambda seed, rounds: rounds * 0.26, "FAIL"),
        (lambda seed, rounds: rounds * (0.27 if seed == 1 else 0.26), "FAIL"),
    ],
)
def test_the_rule_is_about_gold_at_equal_kl(gold, verdict):
    found = arms("arms=[1, 2, 4]", gold=gold)["verdict"]
    assert found["verdict"] == verdict
    if verdict == "PASS":
        assert found["difference"] == pytest.approx(3 * 0.27 / 4) and found["passes"] == 2


def test_so_many_seeds_must_pass_and_by_so_much():
    one = dict(gold=lambda seed, rounds: rounds * (0.27 if seed == 1 else 0.26))
    assert arms("min_passes=1", **one)["verdict"]["verdict"] == "PASS"
    assert arms("min_gain=0.1", **one)["verdict"]["passes"] == 2


def test_a_kl_that_is_never_reached_is_no_pass():
    found = arms("kl=51", "results=page")
    assert found["verdict"]["passes"] == 0 and found["verdict"]["difference"] is None
    assert "| never |" in found["written"]["page.md"]


def test_a_seed_that_fails_does_not_lose_the_others():
    def gold(seed, rounds):
        if seed == 1:
            raise UserError("no")
        return 2.0 * rounds

    found = arms(gold=gold)["verdict"]
    assert (found["seeds"], found["passes"], found["verdict"]) == (1, 1, "FAIL")


def test_the_page_has_the_rule_every_seed_and_every_round():
    page = arms("results=page", "arms=[1, 2]", "min_gain=0.3")["written"]["page.md"]
    assert "jaxrlhf rounds seeds" in page and "arms=[1,2]" in page
    assert "2 rounds beat 1 by 0.3 standard deviations" in page
    assert "**PASS: 2 of 2 that were run.**" in page
    # Gold 2 and 4 at the end, half of it at KL 25, in SDs of 2: .5 and 1.
    assert "| 1 | 0.50 | 1.00 | +0.50 | PASS |" in page
    assert "| 2 rounds | 2 | 12 | 2.00 | 25.0 | 0.900 | 0.900 | 0.800 | 0.800 |" in page
    for name in ("gold_by_kl", "accuracy"):
        assert f"page/{name}.png" in page


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("arms=[4, 1]", "must be numbers from 1 on, rising"),
        ("arms=[0, 1]", "must be numbers from 1 on, rising"),
        ("arms=[1, 5]", "do not split over 5 rounds"),
    ],
)
def test_arms_that_cannot_be_compared(override, says):
    with pytest.raises(ConfigError, match=says):
        arms(override)
