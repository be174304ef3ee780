"""Chains by round and by principle, round robins and paths at equal KL: cases done by hand."""

import numpy as np
import pytest

from jaxrlhf.evals import revisions


def chain(response, *steps, discarded=None):
    told = [{"principle": principle, "revision": text} for principle, text in steps]
    return {"prompt": "p", "response": response, "revisions": told, "discarded": discarded}


CHAINS = [
    chain("xxx", ("no-x", "xx"), ("no-y", "xx")),
    chain("x", discarded="response: empty"),
    chain("xy", ("no-y", "x"), ("no-x", "")),
]


def measure(prompts, responses):
    assert list(prompts) == ["p", "p"]
    return {
        "x": np.array([text.count("x") for text in responses]),
        "length": np.array([len(text) for text in responses]),
    }


def test_by_round_measures_every_text_of_the_chains_that_were_kept():
    found = revisions.by_round(CHAINS, measure)
    assert found["x"].tolist() == [[3, 1], [2, 1], [2, 0]]
    assert found["length"].tolist() == [[3, 2], [2, 1], [2, 0]]


def test_by_principle():
    columns = revisions.by_round(CHAINS, measure)
    # no-x: 3 -> 2 and 1 -> 0, both changed. no-y: 2 -> 2, the same text, and 1 -> 1, another one.
    assert revisions.by_principle(CHAINS, columns, "x") == [
        ("no-x", 2, 1.0, 2.0, 1.0),
        ("no-y", 2, 0.5, 1.5, 1.5),
    ]


def test_nothing_can_be_said_of_discarded_chains_alone():
    with pytest.raises(ValueError, match="every chain was discarded"):
        revisions.by_round([CHAINS[1]], measure)


def test_round_robin_counts_ties_as_half():
    scores = {"a": np.array([1.0, 2, 3]), "b": np.array([1.0, 1, 4]), "c": np.zeros(3)}
    # a against b: a tie, a win, a loss. Both always beat c.
    wanted = [[0, 1.5, 3], [1.5, 0, 3], [0, 0, 0]]
    assert revisions.round_robin(scores).tolist() == wanted


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (0.0, 8.0),
        (0.5, 7.0),  # a quarter of the way from 0 to 2 nats: of that from 8 to 4
        (1.0, 9.0),  # on the way up, on the way back to 1, and this is where it turns
        (1.5, 7.25),  # up, back, and up again: a quarter of the way from 1 to 3, from 9 to 2
        (3.0, 2.0),
        (3.1, None),
    ],
)
def test_at_kl_is_where_a_path_last_was_there(target, value):
    assert revisions.at_kl([0.0, 2.0, 1.0, 3.0], [8.0, 4.0, 9.0, 2.0], target) == value


def test_at_kl_on_the_way_back_and_of_a_path_that_never_was_there():
    # From 2 nats back to 1: half-way from 4 to 9.
    assert revisions.at_kl([0.0, 2.0, 1.0], [8.0, 4.0, 9.0], 1.5) == 6.5
    assert revisions.at_kl([2.0, 2.0], [5.0, 4.0], 1.0) is None
    assert revisions.at_kl([0.0, 1.0, 1.0], [5.0, 4.0, 3.0], 1.0) == 3.0
