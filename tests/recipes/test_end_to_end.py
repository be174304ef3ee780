"""Real tokenizers and real data, end to end: train, export, and answer.

A small GPT-2-shaped model with GPT-2's tokenizer is fine-tuned on instructions, made a reward model
on HH-RLHF, improved by PPO and exported; a small Llama with TinyLlama's chat template is fine-tuned
and exported. Where torch is installed, `transformers` has to answer and score the same.
"""

import json
from pathlib import Path

import jax
import micro
import numpy as np
import pytest
from realdata import shared_data

from jaxrlhf import inference, sharding
from jaxrlhf.data import chat
from jaxrlhf.recipes import saved

MESH = sharding.make_mesh(1, 1)
QUESTION = "Why is the sky blue?"
SMALL = (
    *("model.d_model=32", "model.num_layers=2", "model.num_heads=2", "model.max_positions=128"),
    *("max_length=96", "batch_size=4", "max_steps=4", "tensorboard=false", "packing=none"),
    *("optimizer.learning_rate=0.01", "data.limit=80", "format=examples"),
)
# One step: of packed rows each is a new shape, and so a new program.
TRAIN = ("batch_size=4", "max_steps=1", "tensorboard=false", "optimizer.learning_rate=0.003")


def must(folder: Path, *argv: str) -> None:
    assert micro.command(folder, *argv) == 0, argv


def enliven(folder: Path) -> None:
    """`policy` with noise on every weight, as `lively`.

    A model of a few steps repeats one word for ever, and so do many that are wrong; this one says
    something else at every place.
    """
    lm, params, words, family = saved.load_lm(str(folder / "policy"), MESH)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)
    saved.save_lm(folder / "lively", lm, noisy, words, family=family)
    must(folder, "export", "lively", "output=exported")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """Folder with sft/, reward/, ppo/ and the exported `policy`."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = shared_data("tokenizers/gpt2")
    instructions = shared_data("alpaca_sft/train.jsonl.gz")
    pairs = shared_data("hh_rlhf/harmless_single_turn_train.jsonl.gz")
    tuned = (f"tokenizer.path={tokenizer}", "model.family=gpt2", f"data.train=[{instructions}]")
    must(folder, "sft", "output_dir=sft", *tuned, *SMALL)
    must(
        folder,
        *("reward", "output_dir=reward", "model_path=sft/model", f"data.train=[{pairs}]"),
        *("max_length=96", "data.limit=80", "packing=packed", *TRAIN),
    )
    must(
        folder,
        *("ppo", "output_dir=ppo", "policy=sft/model", "reward_model=reward/model"),
        *(f"prompts.files=[{instructions}]", "prompts.limit=40", "prompts.max_length=48"),
        *("sampling.response_length=8", "packing=packed", *TRAIN),
    )
    must(folder, "export", "ppo", "output=policy")
    enliven(folder)
    return folder


@pytest.fixture(scope="module")
def chatty(tmp_path_factory) -> Path:
    """Folder with a fine-tuned Llama of TinyLlama's words, exported as `policy`."""
    pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = shared_data("tokenizers/tinyllama_chat")
    rows = folder / "rows.jsonl"
    words = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is air."}]
    rows.write_text("".join(json.dumps({"messages": words}) + "\n" for _ in range(8)))
    tuned = (f"tokenizer.path={tokenizer}", f"data.train=[{rows}]")
    must(folder, "sft", "output_dir=sft", *tuned, *SMALL)
    must(folder, "export", "sft", "output=policy")
    enliven(folder)
    return folder


def answer(folder: Path, capfd, *argv: str) -> str:
    capfd.readouterr()
    argv = (f"prompt={QUESTION}", "sampling.temperature=0", "sampling.response_length=20", *argv)
    must(folder, "generate", "exported", *argv)
    return capfd.readouterr().out.removesuffix("\n")


def test_the_export_is_an_ordinary_folder(gpt2):
    names = {path.name for path in (gpt2 / "policy").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    values = json.loads((gpt2 / "policy" / "config.json").read_text())
    assert values["architectures"] == ["GPT2LMHeadModel"]
    assert values["vocab_size"] == 50264  # 50257 words, and padding to a multiple of 8
    # GPT-2 has no padding token: the end token stands in; a text's end must not seem padding.
    assert values["eos_token_id"] == values["pad_token_id"] == 50256
    scalar = json.loads((gpt2 / "reward" / "model" / "config.json").read_text())
    assert scalar["architectures"] == ["GPT2ForSequenceClassification"]
    assert scalar["pad_token_id"] is None and scalar["eos_token_id"] == 50256


def test_the_end_token_is_learnt_though_it_is_the_padding_too(gpt2):
    """Its row of the embedding is trained up, those of tokens in no text are not trained at all."""
    lm, params, words, _ = saved.load_lm(str(gpt2 / "sft" / "model"), MESH)
    tokens = chat.encode_example(words, chat.Example("One and one is", " two")).tokens[None]
    stats = inference.score(lm, params, tokens, tokens >= 0, response_length=1)
    rare = tokens.copy()
    rare[0, -1] = 39752  # a token of no instruction
    other = inference.score(lm, params, rare, tokens >= 0, response_length=1)
    assert float(stats.log_probs[0, 0]) > float(other.log_probs[0, 0]) + 0.5


def test_answers_are_text_and_repeatable(gpt2, chatty, capfd):
    for folder in (gpt2, chatty):
        first = answer(folder, capfd)
        assert len(set(first)) > 10, first
        assert first == answer(folder, capfd)


def test_chat_is_asked_through_the_template(chatty, capfd):
    tokenizer = saved.load_lm(str(chatty / "exported"), MESH).tokenizer
    assert "<|assistant|>" in chat.render(
        tokenizer, [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )
    assert answer(chatty, capfd) != answer(chatty, capfd, "chat=false")


# The same in transformers. They say the same numbers up to rounding, so greedy answers are equal
# unless two tokens tie to five digits.


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch", reason="torch is in the extra `parity`")
    found.set_num_threads(1)
    return found


def greedy(torch, folder: Path, tokens: list[int], *, new_tokens: int = 20) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokens])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    return out[0, len(tokens) :].tolist()


def test_transformers_answers_as_generate_does(torch, gpt2, capfd):
    words = saved.load_lm(str(gpt2 / "exported"), MESH).tokenizer
    theirs = greedy(torch, gpt2 / "exported", words(QUESTION)["input_ids"])
    assert answer(gpt2, capfd) == words.decode(theirs, skip_special_tokens=True)


def test_transformers_answers_a_conversation_as_generate_does(torch, chatty, capfd):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(chatty / "exported")
    tokens = words.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    theirs = greedy(torch, chatty / "exported", tokens)
    assert answer(chatty, capfd) == words.decode(theirs, skip_special_tokens=True)


def test_transformers_scores_as_we_do(torch, gpt2):
    """Texts that end in the end token, which is the padding token here."""
    from transformers import AutoModelForSequenceClassification

    folder = gpt2 / "reward" / "model"
    model, params, words, _ = saved.load_scalar(str(folder), MESH)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    bias = json.loads((folder / "config.json").read_text())["jaxrlhf"]["score_bias"]
    for text in ("Hello there", "I will not help with that."):
        tokens = chat.encode_text(words, text)[None]
        assert tokens[0, -1] == words.pad_token_id
        ours = np.asarray(inference.reward_scores(model, params, tokens, tokens >= 0))
        with torch.no_grad():
            score = theirs(torch.tensor(tokens.astype(np.int64))).logits[0].numpy()
        np.testing.assert_allclose(score + bias, ours, atol=1e-4)


def test_transformers_gives_the_same_logits(torch, gpt2):
    from transformers import AutoModelForCausalLM

    lm, params, words, _ = saved.load_lm(str(gpt2 / "exported"), MESH)
    tokens = np.array([words(QUESTION)["input_ids"]])
    ours = lm.logits(params, lm.hidden(params, tokens, tokens >= 0))
    with torch.no_grad():
        theirs = (
            AutoModelForCausalLM.from_pretrained(gpt2 / "exported")
            .eval()(torch.tensor(tokens))
            .logits.numpy()
        )
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4)
