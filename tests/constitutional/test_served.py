"""A judge behind HTTP, on this machine: right answers, failures, stalls, nonsense, cost, cache."""

import collections
import threading
import time

import numpy as np
import pytest
from http_model import chat, completion, serving, stall

from jaxrlhf.constitutional.constitution import Comparison, Constitution
from jaxrlhf.constitutional.endpoint import Endpoint
from jaxrlhf.constitutional.judge import Pair, label_pairs
from jaxrlhf.constitutional.sampler import Drawn
from jaxrlhf.constitutional.served import Rehearsal, Served, log_probs_of, names
from jaxrlhf.errors import ConfigError, UserError

OPTIONS = (" (A)", " (B)")
GOOD = completion({" (": -0.1, "x": -3.0}, {"A": -0.2, "B": -1.7, "C": -5.0}, {")": 0.0})
GARBAGE = ("<html>oops</html>", "", "{", {"error": "no"}, {"choices": []}, [1], "null", '"x"')


@pytest.fixture
def served(tmp_path):
    def served(server, *, api="completions", **changes) -> Served:
        options = {"timeout": 5.0, "backoff": 0.001, "retries": 3} | changes
        endpoint = Endpoint(url=server.url, cache=tmp_path / "cache", **options)
        return Served(endpoint, model="judge", max_new_tokens=9, api=api, batch_size=4)

    return served


# What an answer says.


def test_log_probs_are_read_off_the_token_that_names_an_option():
    assert names(OPTIONS) == {"A": "(A", "B": "(B"}
    assert log_probs_of(GOOD, names(OPTIONS)) == [-0.2, -1.7]


def test_tokens_that_differ_in_white_space_and_brackets_are_added_up():
    answer = completion({" A": -1.0, "A": -2.0, "(A": -3.0, "B": -1.5, "AB": -0.9, "a": -1.0})
    both = np.log(np.exp(-1) + np.exp(-2) + np.exp(-3))
    named = {"A": "A", "B": "B"}
    assert max(answer["choices"][0]["logprobs"]["tokens"]) == "AB"  # no option: keep looking
    assert np.isnan(log_probs_of(answer, named)).all()
    answer["choices"][0]["logprobs"]["tokens"] = [" A"]
    assert log_probs_of(answer, named) == pytest.approx([both, -1.5])


def test_an_option_that_is_not_among_the_most_probable_is_given_the_least_of_them():
    answer = completion({"A": -0.1, "The": -4.0, "I": -6.0})
    assert log_probs_of(answer, names(OPTIONS)) == [-0.1, -6.0]


@pytest.mark.parametrize(
    ("tokens", "is_named"),
    [
        (["A"], True),
        (["(", "A", ")"], True),
        ([" **", "A", "**"], True),
        (["The", " answer", " is", " (", "A", ")"], True),
        (["The", " answer", " is", " (A)"], True),
        (["What", " A", " mess"], False),
        (["I", " cannot"], False),
        ([], False),
    ],
)
def test_a_name_is_the_first_word_or_in_brackets(tokens, is_named):
    answer = completion(*({token: -0.1, "B": -2.0} for token in tokens))
    found = log_probs_of(answer, names(OPTIONS))
    assert found == [-0.1, -2.0] if is_named else np.isnan(found).all()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"choices": [{"text": "A"}]},
        {"choices": [{"text": "A", "logprobs": None}]},
        {"choices": [{"text": "A", "logprobs": {"tokens": ["A"]}}]},
        {"choices": [{"text": "A", "logprobs": {"tokens": ["A"], "top_logprobs": [None]}}]},
        {"choices": [{"text": "A", "logprobs": {"content": [{"token": "A"}]}}]},
        {"choices": [{"text": "A", "logprobs": {"content": [{"token": "A", "top_logprobs": []}]}}]},
    ],
)
def test_an_answer_without_log_probs_is_unreadable_and_no_error(answer):
    assert np.isnan(log_probs_of(answer, names(OPTIONS))).all()


def test_options_without_names_of_their_own_are_refused():
    with pytest.raises(ConfigError, match="collide"):
        names([" (A)", " A."])
    with pytest.raises(ConfigError, match="collide"):
        names([" ()", " (B)"])


# Asking.


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_it_is_asked_by_the_api_it_has(served, api):
    answer = {"completions": GOOD, "chat": chat({"A": -0.2, "B": -1.7})}[api]
    with serving(lambda path, body, number: (200, answer)) as server:
        found = served(server, api=api).option_log_probs(["\n\nq1", "q2"], OPTIONS)
        paths = {"completions": "prompt", "chat": "messages"}
    np.testing.assert_allclose(found, [[-0.2, -1.7]] * 2)
    assert len(server.bodies) == 2 and all(paths[api] in body for body in server.bodies)
    assert all(body["temperature"] == 0 and body["model"] == "judge" for body in server.bodies)
    if api == "chat":
        said = {body["messages"][0]["content"] for body in server.bodies}
        assert said == {"q1", "q2"} and server.bodies[0]["top_logprobs"] == 20
    else:
        assert {body["prompt"] for body in server.bodies} == {"\n\nq1", "q2"}


def test_answers_come_in_the_order_of_the_texts(served):
    def reply(path, body, number):
        time.sleep(0.02 * (number % 3))
        return 200, completion({"A": -float(body["prompt"]), "B": -20.0})

    with serving(reply) as server:
        found = served(server).option_log_probs([str(n) for n in range(12)], OPTIONS)
    assert found[:, 0].tolist() == [-float(n) for n in range(12)]


def test_texts_are_generated_with_seed_and_stops(served):
    said = completion(text=" because.\n\nHuman: no")
    with serving(lambda path, body, number: (200, said)) as server:
        model = served(server)
        drawn = model.generate(["q"] * 2, [(0, 1), (0, 2)], stops=["\n\nHuman:", *"1234"])
        again = model.generate(["q"], [(0, 1)], stops=["\n\nHuman:", *"1234"])
    assert drawn == [Drawn("because.", None, True)] * 2 and again == drawn[:1]
    assert len(server.bodies) == 2  # the third was on disk
    assert server.bodies[0]["seed"] != server.bodies[1]["seed"]
    assert server.bodies[0]["stop"] == ["\n\nHuman:", "1", "2", "3"]
    assert {body["max_tokens"] for body in server.bodies} == {9}


def test_a_text_cut_by_length_is_unfinished(served):
    with serving(lambda *_: (200, completion(text="on and", end="length"))) as server:
        (drawn,) = served(server).generate(["q"], [(0,)])
    assert drawn == Drawn("on and", None, False)


def test_no_more_requests_than_allowed_are_under_way(served):
    with serving(lambda *_: stall(0.03, GOOD)) as server:
        served(server, concurrency=3).option_log_probs([str(n) for n in range(12)], OPTIONS)
        assert server.most_under_way == 3
    with serving(lambda *_: stall(0.01, GOOD)) as server:
        served(server, concurrency=1).option_log_probs([f"x{n}" for n in range(4)], OPTIONS)
        assert server.most_under_way == 1


def test_the_key_is_sent_and_never_written(served, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "sesame-open")
    with serving(lambda *_: (200, GOOD)) as server:
        served(server, key_variable="MY_KEY").option_log_probs(["q"], OPTIONS)
    assert server.headers[0]["Authorization"] == "Bearer sesame-open"
    kept = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert kept and not any("sesame" in text for text in kept)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        served(server, key_variable="MY_KEY").option_log_probs(["q"], OPTIONS)


# What goes wrong.


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(served, status):
    def reply(path, body, number):
        return (status, "busy") if number < 3 else (200, GOOD)

    with serving(reply) as server:
        found = served(server).option_log_probs(["q"], OPTIONS)
    assert len(server.bodies) == 4
    np.testing.assert_allclose(found, [[-0.2, -1.7]])


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_not_pass_stops_at_once_and_says_why(served, status):
    with serving(lambda *_: (status, "no such model")) as server:
        with pytest.raises(UserError, match=f"answered {status} .*no such model"):
            served(server, concurrency=1).option_log_probs(list("abcdef"), OPTIONS)
    assert len(server.bodies) == 1


def test_a_server_that_stays_silent_stops_the_run(served):
    with serving(lambda *_: (503, "busy")) as server:
        with pytest.raises(UserError, match=r"no answer after 4 tries .answered 503"):
            served(server).option_log_probs(["q"], OPTIONS)
        assert len(server.bodies) == 4
    with pytest.raises(UserError, match=r"no answer after 4 tries .*refused"):
        served(server).option_log_probs(["q"], OPTIONS)  # it is gone


def test_a_stall_is_cut_and_tried_again(served):
    def reply(path, body, number):
        return stall(1.5, GOOD) if number == 0 else (200, GOOD)

    with serving(reply) as server:
        start = time.monotonic()
        found = served(server, timeout=0.2).option_log_probs(["q"], OPTIONS)
        assert time.monotonic() - start < 1.2
    assert len(server.bodies) == 2
    np.testing.assert_allclose(found, [[-0.2, -1.7]])


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_nonsense_is_tried_again_and_then_counted(served, garbage, tmp_path):
    def reply(path, body, number):
        return (200, garbage) if body["prompt"] == "bad" else (200, GOOD)

    with serving(reply) as server:
        found = served(server).option_log_probs(["good", "bad"], OPTIONS)
        drawn = served(server).generate(["bad"], [(0,)])
    assert len(server.bodies) == 1 + 4 + 4
    np.testing.assert_allclose(found[0], [-0.2, -1.7])
    assert np.isnan(found[1]).all()
    assert drawn == [Drawn("", None, False, "the server gave no answer that can be read")]
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1  # nonsense is not kept


def test_delays_double_and_vary(served, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with serving(lambda *_: (500, "no")) as server:
        for _ in range(20):
            with pytest.raises(UserError):
                served(server, backoff=1.0, retries=3).option_log_probs(["q"], OPTIONS)
    thirds = [slept[n::3] for n in range(3)]
    for power, delays in enumerate(thirds):
        assert len(set(delays)) > 10
        assert all(0.5 * 2**power <= x <= 1.5 * 2**power for x in delays)


def test_a_server_may_ask_for_more_time(served, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with serving(lambda path, body, number: (429, "") if number == 0 else (200, GOOD)) as server:
        served(server, backoff=0.0).option_log_probs(["q"], OPTIONS)
    assert slept == [0.01]  # its Retry-After


# Answers on disk.


def test_what_was_answered_is_not_asked_again(served):
    with serving(lambda *_: (200, GOOD)) as server:
        first = served(server).option_log_probs(["a", "b"], OPTIONS)
        again = served(server).option_log_probs(["b", "a", "c"], OPTIONS)
    assert len(server.bodies) == 3
    np.testing.assert_allclose(first, again[:2])
    with serving(lambda *_: (200, GOOD)) as other:  # another server is another question
        served(other).option_log_probs(["a"], OPTIONS)
    assert len(other.bodies) == 1


def test_an_answer_that_was_damaged_is_asked_for_again(served, tmp_path):
    with serving(lambda *_: (200, GOOD)) as server:
        served(server).option_log_probs(["a"], OPTIONS)
        (path,) = (tmp_path / "cache").rglob("*.json")
        path.write_text(path.read_text()[:20])
        found = served(server).option_log_probs(["a"], OPTIONS)
        assert len(server.bodies) == 2
        served(server).option_log_probs(["a"], OPTIONS)
    assert len(server.bodies) == 2
    np.testing.assert_allclose(found, [[-0.2, -1.7]])


def test_after_a_failure_only_the_rest_is_asked(served):
    alive = threading.Event()

    def reply(path, body, number):
        return (200, GOOD) if alive.is_set() or body["prompt"] < "5" else (500, "down")

    texts = [str(n) for n in range(10)]
    with serving(reply) as server:
        with pytest.raises(UserError):
            served(server, retries=0, concurrency=1).option_log_probs(texts, OPTIONS)
        alive.set()
        served(server).option_log_probs(texts, OPTIONS)
    asked = collections.Counter(body["prompt"] for body in server.bodies)
    assert asked == {**{str(n): 1 for n in range(10)}, "5": 2}


# What it would take.

CONSTITUTION = Constitution(
    name="test", comparisons=(Comparison(id="kind", question="Which is kinder?"),)
)
PAIRS = [Pair("q", "x" * 100, "y" * 100), Pair("q", "short", "shorter")]


@pytest.mark.parametrize("think", [False, True])
def test_the_estimate_is_of_what_is_then_asked(served, think):
    def reply(path, body, number):
        return 200, GOOD if "logprobs" in body else completion(text=" hm.")

    with serving(reply) as server:
        model = served(server, concurrency=4)
        rehearsal = Rehearsal(model)
        made = list(label_pairs(rehearsal, PAIRS, CONSTITUTION, think=think))
        prices = {"price_read": 2.0, "price_written": 10.0, "seconds_per_request": 3.0}
        before = rehearsal.estimate(**prices)
        assert not server.bodies and len(made) == 2
        labelled = list(label_pairs(model, PAIRS, CONSTITUTION, think=think))
        after = rehearsal.estimate(**prices)
    assert before.requests == len(server.bodies) == (8 if think else 4)
    assert (before.answered, before.seconds) == (0, 6.0 if think else 3.0)
    read = sum(len(body["prompt"]) for body in server.bodies) / 4
    thoughts = 4 * (9 - 1) if think else 0  # 9 tokens thought of for each of four, 1 was written
    assert abs(before.tokens_read - read - thoughts) < 2 + 4 * think
    written = sum(body["max_tokens"] for body in server.bodies)
    assert before.tokens_written == written
    assert before.cost == pytest.approx((2 * before.tokens_read + 10 * written) / 1e6)
    # Equal questions were answered; conclusions after other thoughts were not.
    assert after.answered == 4
    assert after.requests - after.answered == (4 if think else 0)
    assert all(row["discarded"] is None for row in labelled)


def test_labels_of_a_server_equal_those_of_its_log_probs(served):
    """P(A) = sigmoid(-.2 + 1.7) = .8176 in either order: the judge looks at the place alone."""
    with serving(lambda *_: (200, GOOD)) as server:
        rows = list(label_pairs(served(server), PAIRS, CONSTITUTION))
        one = list(label_pairs(served(server), PAIRS, CONSTITUTION, both_orders=False))
    assert [row["probability"] for row in rows] == pytest.approx([0.5, 0.5])
    p = 1 / (1 + np.exp(-1.5))
    for row in one:
        expected = p if row["judgements"][0]["order"] == "ab" else 1 - p
        assert row["probability"] == pytest.approx(expected)
