"""What a model is shown, written out: chains, direct revisions, comparisons, thoughts."""

import collections

import pytest

from jaxrlhf.constitutional import texts
from jaxrlhf.constitutional.constitution import Constitution

TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "how?"},
]
DIALOGUE = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: how?\n\nAssistant:"

CONSTITUTION = Constitution.model_validate(
    {
        "name": "test",
        "principles": [{"id": "p", "critique_request": "wrong?", "revision_request": "fix it"}],
        "comparisons": [{"id": c, "question": f"which {c}?"} for c in ("one", "two", "three")],
        "layout": {
            "respond": "Q {prompt} A",
            "critique": " | {request} C",
            "revise": " | {request} R",
            "compare": "<{prompt}> {question} (A) {a} (B) {b} =>",
            "options": [" A", " B"],
            "think": "<{prompt}> {question} (A) {a} (B) {b} think",
            "conclude": " so",
        },
        "critique_examples": [
            {
                "prompt": f"q{n}",
                "response": f"r{n}",
                "critique_request": f"cr{n}",
                "critique": f"c{n}",
                "revision_request": f"rr{n}",
                "revision": f"v{n}",
            }
            for n in (1, 2)
        ],
        "comparison_examples": [{"prompt": "e", "better": "good", "worse": "bad"}],
        "thought_examples": [
            {"prompt": "e", "a": "x", "b": "y", "reasoning": "because", "better": "b"}
        ],
    }
)
P = CONSTITUTION.principles[0]
ONE = CONSTITUTION.comparisons[0]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("plain", "plain"),
        (TURNS[:1], "hi"),
        (TURNS, "hi\n\nAssistant: yes?\n\nHuman: how?"),
        (DIALOGUE, "hi\n\nAssistant: yes?\n\nHuman: how?"),
        ([{"role": "system", "content": "Be brief."}, TURNS[0]], "Be brief.\n\nHuman: hi"),
    ],
)
def test_a_prompt_is_a_text_or_a_conversation(prompt, text):
    assert texts.prompt_text(prompt) == text
    assert texts.response_query(CONSTITUTION, prompt) == f"Q {text} A"


def test_by_the_default_layout_a_conversation_is_asked_as_a_dialogue():
    plain = CONSTITUTION.model_copy(update={"layout": type(CONSTITUTION.layout)()})
    assert texts.response_query(plain, DIALOGUE) == DIALOGUE
    assert texts.response_query(plain, TURNS) == DIALOGUE


def test_a_chain():
    critique = texts.critique_query(CONSTITUTION, "q", "r", P)
    shots = "".join(f"Q q{n} A r{n} | cr{n} C c{n} | rr{n} R v{n}" for n in (1, 2))
    assert critique == shots + "Q q A r | wrong? C"
    assert texts.revision_query(CONSTITUTION, critique, "c", P) == critique + " c | fix it R"


def test_fewer_examples():
    one, none = (texts.critique_query(CONSTITUTION, "q", "r", P, few_shot=n) for n in (1, 0))
    assert one == "Q q1 A r1 | cr1 C c1 | rr1 R v1Q q A r | wrong? C"
    assert none == "Q q A r | wrong? C"


def test_a_direct_revision_shows_no_critique():
    query = texts.direct_query(CONSTITUTION, "q", "r", P, few_shot=1)
    assert query == "Q q1 A r1 | rr1 R v1Q q A r | fix it R"
    own = CONSTITUTION.layout.model_copy(update={"direct": " now {request}:"})
    other = CONSTITUTION.model_copy(update={"layout": own})
    assert texts.direct_query(other, "q", "r", P, few_shot=0) == "Q q A r now fix it:"


def test_a_comparison_shows_examples_in_a_drawn_order_with_a_drawn_question():
    seen = collections.Counter()
    for n in range(300):
        query = texts.comparison_query(CONSTITUTION, "q", ("x", "y"), ONE, key=(n,))
        shot, asked = query.split("<q>")
        assert asked == " which one? (A) x (B) y =>"
        seen[shot] += 1
    shots = {
        f"<e> which {question}? {pair}"
        for question in ("one", "two", "three")
        for pair in ("(A) good (B) bad => A", "(A) bad (B) good => B")
    }
    assert set(seen) == shots
    assert min(seen.values()) > 25  # of 50 expected: 3.9 standard deviations


def test_examples_depend_on_the_key_and_not_on_the_pair():
    def shot(*responses, key):
        return texts.comparison_query(CONSTITUTION, "q", responses, ONE, key=key).split("<q>")[0]

    assert all(shot("x", "y", key=(n,)) == shot("y", "x", key=(n,)) for n in range(20))
    assert len({shot("x", "y", key=(n,)) for n in range(20)}) > 1


def test_thoughts_end_with_the_option_that_their_example_chose():
    query = texts.thought_query(CONSTITUTION, "q", ("x", "y"), ONE, key=(4,))
    shot, asked = query.split("<q>")
    assert asked == " which one? (A) x (B) y think"
    assert shot.endswith("(A) x (B) y think because so B")
    assert texts.conclusion_query(CONSTITUTION, "...think", "hm") == "...think hm so"


def test_an_answer_has_the_form_of_its_prompt():
    assert texts.as_answer("q", "r") == " r"
    assert texts.as_answer(TURNS, "r") == [{"role": "assistant", "content": "r"}]
    turns = [{"role": "assistant", "content": "r"}]
    assert texts.as_answer(TURNS, turns) == turns
