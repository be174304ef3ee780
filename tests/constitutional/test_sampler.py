"""A model in this process, on a table of logits: log-probs by hand, stops, lengths, collisions."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

from jaxrlhf import inference
from jaxrlhf.constitutional.sampler import Sampler, first_stop, option_tokens
from jaxrlhf.data import chat, tokenizer
from jaxrlhf.errors import ConfigError
from jaxrlhf.sampling import Sampling

WORDS = ("a", "b", "c", "d", "yes", "no", "END", "not")
TOKENIZER = tokenizer.word_tokenizer(WORDS)  # pad 0, bos 1, eos 2, unk 3, then the words
SIZE = len(TOKENIZER)
LM = tables.table_lm(tables.TableConfig(SIZE, max_positions=12))
PARAMS = {
    "embed": {
        "embedding": jnp.asarray(np.random.default_rng(0).normal(0, 1.5, (SIZE, SIZE)), jnp.float32)
        .at[:, :4]
        .add(-9.0)  # words only, as good as always
    }
}
SAMPLING = Sampling(max_new_tokens=6, stop_ids=(2,), pad_id=0)


def sampler(**changes):
    options = {"batch_size": 4, "seed": 3} | changes
    return Sampler(LM, options.pop("params", PARAMS), TOKENIZER, SAMPLING, **options)


def log_softmax(row):
    row = np.asarray(row, np.float64)
    return row - np.log(np.exp(row).sum())


def by_hand(words: str) -> float:
    """Log-prob of all words after the first: a row of the table for each."""
    ids = [TOKENIZER.convert_tokens_to_ids(word) for word in words.split()]
    table = np.asarray(PARAMS["embed"]["embedding"])
    return sum(log_softmax(table[x])[y] for x, y in itertools.pairwise(ids))


# Options.


def test_option_log_probs_are_those_of_the_whole_option():
    found = sampler().option_log_probs(["a b", "c"], [" yes", " no"])
    expected = [[by_hand("b yes"), by_hand("b no")], [by_hand("c yes"), by_hand("c no")]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_options_of_different_lengths_that_begin_alike():
    found = sampler().option_log_probs(["a b"] * 3, [" yes a", " yes b c"])
    np.testing.assert_allclose(found, [[by_hand("b yes a"), by_hand("b yes b c")]] * 3, rtol=1e-5)


def test_an_option_does_not_depend_on_the_texts_beside_it():
    texts = ["a", "a b c d a b c", "d c", "b", "c a"]
    alone = [sampler().option_log_probs([text], [" yes", " no"])[0] for text in texts]
    np.testing.assert_allclose(sampler().option_log_probs(texts, [" yes", " no"]), alone, rtol=1e-5)


def test_a_text_that_cannot_be_read_has_no_log_probs_and_stops_nobody():
    found = sampler().option_log_probs(["a " * 12, "c", "a <eos> b"], [" yes", " no"])
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[1], [by_hand("c yes"), by_hand("c no")], rtol=1e-5)
    assert sampler().option_log_probs([], [" yes", " no"]).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([" yes", " yes"], "collide"),
        ([" yes", " yes no"], "begin those of the other"),
        ([" yes", " maybe"], "' maybe' is not in the tokenizer's vocabulary"),
    ],
)
def test_options_that_cannot_be_told_apart_are_refused(options, says):
    with pytest.raises(ConfigError, match=r"layout\.options") as error:
        sampler().option_log_probs(["a"], options)
    assert says in str(error.value)


def test_options_that_share_their_first_token_are_fine():
    """As " (A)" and " (B)" of GPT-2 do: what counts is the whole option."""
    ids = option_tokens(TOKENIZER, [" a yes", " a no"])
    assert [one.tolist() for one in ids] == [[4, 8], [4, 9]]


# Texts.


def greedy(words: str) -> dict:
    """A table that, at temperature near 0, says these words one after the other."""
    ids = [TOKENIZER.convert_tokens_to_ids(word) for word in words.split()]
    table = np.full((SIZE, SIZE), 0.0, np.float32)
    for x, y in itertools.pairwise(ids):
        table[x, y] = 50.0
    return {"embed": {"embedding": jnp.asarray(table)}}


def test_a_text_ends_at_the_end_token():
    drawn = sampler(params=greedy("a b c <eos>")).generate(["d a"], [(0,)])[0]
    assert (drawn.text, drawn.finished, drawn.problem) == ("b c", True, None)
    assert drawn.log_prob == pytest.approx(0, abs=1e-6)


def test_a_text_ends_at_a_stop_that_is_a_token():
    drawn = sampler(params=greedy("a b END c")).generate(["a"], [(0,)], stops=["END"])[0]
    assert (drawn.text, drawn.finished) == ("b", True)


def test_a_text_is_cut_before_a_stop_of_several_tokens():
    """Its log-prob is that of the tokens up to the stop: with greedy words, of none of the rest."""
    drawn = sampler(params=greedy("a b c d b")).generate(["a"], [(0,)], stops=["c d"])[0]
    assert (drawn.text, drawn.finished) == ("b", True)


def test_a_text_that_comes_to_no_stop_is_unfinished():
    drawn = sampler(params=greedy("a b c a")).generate(["a"], [(0,)])[0]
    assert (drawn.text, drawn.finished) == ("b c a b c a", False)


def test_the_log_prob_is_of_what_was_sampled():
    """Against the table, for every text; cut ones count up to the end of their stop."""
    texts, keys = ["a", "b", "c d"] * 10, [(n, 1) for n in range(30)]
    whole = sampler().generate(texts, keys)
    for text, drawn in zip(texts, whole, strict=True):
        end = " <eos>" if drawn.finished else ""
        said = f"{text.split()[-1]} {drawn.text}{end}"
        assert drawn.log_prob == pytest.approx(by_hand(said), rel=1e-4), said
    cut = sampler().generate(texts, keys, stops=["a b", "c d"])
    shorter = 0
    for text, before, drawn in zip(texts, whole, cut, strict=True):
        place = first_stop(before.text, ["a b", "c d"])
        if place is None:
            assert drawn == before
            continue
        shorter += 1
        assert drawn.text == before.text[:place].strip() and drawn.finished
        said = f"{text.split()[-1]} {before.text[: place + 3]}"
        assert drawn.log_prob == pytest.approx(by_hand(said), rel=1e-4), said
    assert shorter >= 2


def test_a_text_depends_on_its_key_and_not_on_the_batch():
    texts, keys = ["a", "b c", "c", "d d d", "a b"], [(n, 5) for n in range(5)]
    together = sampler().generate(texts, keys)
    alone = [sampler(batch_size=1).generate([t], [k])[0] for t, k in zip(texts, keys, strict=True)]
    wide = sampler(batch_size=8).generate(texts, keys)
    for a, b, c in zip(together, alone, wide, strict=True):
        assert a.text == b.text == c.text
        assert a.log_prob == pytest.approx(b.log_prob, rel=1e-5)
    same_text = [
        drawn.text for drawn in sampler().generate(["a"] * 20, [(n, 5) for n in range(20)])
    ]
    assert len(set(same_text)) > 10
    assert same_text == [
        d.text for d in sampler().generate(["a"] * 20, [(n, 5) for n in range(20)])
    ]
    assert same_text != [
        d.text for d in sampler(seed=4).generate(["a"] * 20, [(n, 5) for n in range(20)])
    ]


def test_what_cannot_be_answered_comes_back_with_the_reason():
    """12 positions, 6 for the answer: 6 words are read, 7 are not."""
    texts = ["a " * 6, "a " * 7, "<eos>", "b"]
    drawn = sampler().generate(texts, [(n,) for n in range(4)])
    problems = [one.problem for one in drawn]
    assert problems == [None, "longer than the model reads", "cannot be tokenised", None]
    assert drawn[1].text == "" and drawn[3].text
    assert sampler().generate(["<eos>"], [(0,)])[0].problem == "cannot be tokenised"
    assert sampler().generate([], []) == []


def test_a_token_that_the_model_has_no_row_for_is_an_error():
    small = tables.table_lm(tables.TableConfig(SIZE - 1, max_positions=12))
    one = dataclasses.replace(sampler(), lm=small)
    with pytest.raises(ConfigError, match=f"'not' is number {SIZE - 1}, the model has {SIZE - 1}"):
        one.generate(["a not"], [(0,)])


def test_on_a_mesh_it_draws_the_same():
    from jaxrlhf import sharding

    mesh = sharding.make_mesh(2, 1)
    texts, keys = ["a", "b c", "c"], [(n,) for n in range(3)]
    placed = jax.device_put(PARAMS, sharding.tree_sharding(mesh, PARAMS))
    there = sampler(mesh=mesh, params=placed)
    assert [d.text for d in there.generate(texts, keys)] == [
        d.text for d in sampler().generate(texts, keys)
    ]
    np.testing.assert_allclose(
        there.option_log_probs(texts, [" yes", " no"]),
        sampler().option_log_probs(texts, [" yes", " no"]),
        rtol=1e-5,
    )


def test_with_pieces_of_words_a_stop_may_begin_and_end_anywhere():
    """A byte-level tokenizer without merges: a letter is a token, so this stop is three of them."""
    letters = tokenizer.train_tokenizer(["."], vocab_size=259)
    lm = tables.table_lm(tables.TableConfig(len(letters), max_positions=16))
    said = letters("!no;Q:z", add_special_tokens=False)["input_ids"]
    table = np.zeros((len(letters), len(letters)), np.float32)
    for x, y in itertools.pairwise(said):
        table[x, y] = 50.0
    params = {"embed": {"embedding": jnp.asarray(table)}}
    sampling = Sampling(max_new_tokens=6, stop_ids=(2,), pad_id=0)
    model = Sampler(lm, params, letters, sampling, 1)
    for stops, text, finished in (
        ([], "no;Q:z", False),
        ([";Q:"], "no", True),
        (["z"], "no;Q:", True),
    ):
        drawn = model.generate(["!"], [(0,)], stops=stops)[0]
        assert (drawn.text, drawn.finished) == (text, finished)


def test_the_log_probs_agree_with_scoring_the_text():
    """On another path: the tokens of text and option, scored as a response."""
    text, option = "a b c", " no"
    tokens = np.concatenate(
        [chat.encode_prompt(TOKENIZER, text), option_tokens(TOKENIZER, [option])[0]]
    )[None]
    stats = inference.score(LM, PARAMS, tokens, tokens >= 0, response_length=1)
    found = sampler().option_log_probs([text], [option, " yes"])[0, 0]
    assert found == pytest.approx(float(stats.log_probs[0, 0]), rel=1e-5)
