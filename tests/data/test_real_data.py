"""Real public data load as they are. Skips where they are absent (see realdata.py)."""

import pytest
from realdata import shared_data

from jaxrlhf.data import arrays, chat, dialogue, formats, pipeline, tokenizer
from jaxrlhf.data.sources import load_rows

# Rows, prompts that differ, and empty answers of each file, counted with a separate script that
# compares everything before the last "\n\nAssistant:" of the two strings.
HH = {
    "harmless_single_turn_train": (9461, 19, 13),
    "harmless_single_turn_test": (1168, 6, 3),
    "helpful_base_train": (1686, 7, 2),
    "helpful_base_test": (248, 0, 1),
}


def messages_of(content):
    assert isinstance(content, list)
    return content


@pytest.mark.parametrize("name", HH)
def test_hh_rlhf(name):
    total, differ, empty = HH[name]
    rows = load_rows(shared_data(f"hh_rlhf/{name}.jsonl.gz"))
    pairs = formats.preferences(rows)
    counts = pairs.skipped.counts
    assert len(rows) == total and len(pairs) == total - differ - empty
    assert (counts.get("prompts differ", 0), counts["empty completion"]) == (differ, empty)
    for i, pair in zip(pairs.index, pairs, strict=True):
        prompt, chosen, rejected = map(messages_of, (pair.prompt, pair.chosen, pair.rejected))
        assert dialogue.render(prompt + chosen) == rows[i]["chosen"]
        assert dialogue.render(prompt + rejected) == rows[i]["rejected"]
        assert prompt[-1]["role"] == "user" and len(chosen) == 1


def test_hh_rlhf_differing_share():
    """The share over all files is the about 0.3 % that the data's own notes state."""
    for name in HH:
        shared_data(f"hh_rlhf/{name}.jsonl.gz")
    share = sum(differ for _, differ, _ in HH.values()) / sum(total for total, _, _ in HH.values())
    assert 0.002 < share < 0.004


def test_hh_rlhf_to_batches():
    rows = load_rows(shared_data("hh_rlhf/helpful_base_test.jsonl.gz"))
    texts = formats.texts(rows, columns={"text": "chosen"})
    tok = tokenizer.train_tokenizer([text.text for text in texts], vocab_size=1000)
    encoded = chat.encode_rows(tok, formats.preferences(rows))
    data = arrays.pairs(encoded, length=512, pad_id=tok.pad_token_id)
    batch = next(pipeline.batches(data, batch_size=8, seed=0))
    for side in ("chosen", "rejected"):
        tokens, mask = batch[f"{side}_tokens"], batch[f"{side}_mask"]
        assert tokens.shape == (8, 512) and tokens.max() < len(tok)
        assert (tokens[range(8), mask.sum(1) - 1] == tok.eos_token_id).all()
    prompts = arrays.prompts(
        chat.encode_rows(tok, formats.prompts(rows)), length=256, pad_id=0, over_long="skip"
    )
    row = int(prompts.columns["row"][5])
    text = tok.decode(prompts.columns["prompt_tokens"][5][prompts.columns["prompt_mask"][5]])
    assert rows[row]["chosen"].startswith(text.replace("<eos>", ""))


def test_sst2():
    rows = load_rows(shared_data("sst2/train_sentences.jsonl.gz"))
    texts = formats.texts(rows, columns={"text": "sentence"})
    assert len(texts) == 6920 and {rows[i]["label"] for i in texts.index} == {0, 1}


def test_alpaca():
    rows = load_rows(shared_data("alpaca_sft/train.jsonl.gz"))
    examples = formats.examples(rows)
    assert len(examples) + examples.skipped.total == 10977 and examples.skipped.total < 50
    rows = load_rows(shared_data("alpaca_sft/llms_from_scratch_preferences.jsonl.gz"))
    pairs = formats.preferences(rows)
    assert len(pairs) + pairs.skipped.total == 1100 and pairs.skipped.total < 50
    assert messages_of(pairs[0].prompt)[0]["content"].endswith("\n\nfreind --> friend")


def test_text_files():
    for name, lines in (("tinyshakespeare", 40000), ("wikitext2_valid", 3760), ("wiki_demo", 30)):
        rows = load_rows(shared_data(f"text/{name}.txt.gz"))
        texts = formats.texts(rows)
        assert 0 < len(texts) <= lines and not texts.skipped.total


def test_conversations_with_string_answers():
    rows = load_rows(shared_data("rmb_pairs/test.jsonl.gz"))
    pairs = formats.preferences(rows, columns={"prompt": "conversation"})
    assert len(pairs) + pairs.skipped.total == 1004 and messages_of(pairs[0].chosen)


def test_csv_files():
    rows = load_rows(shared_data("xstest/xstest_prompts.csv"))
    prompts = formats.prompts(rows)
    assert len(prompts) == 450 and prompts[0].columns["label"] == "safe"
    rows = load_rows(shared_data("harmful_prompts/advbench_harmful_behaviors.csv"))
    assert len(formats.prompts(rows, columns={"prompt": "goal"})) == len(rows) > 400


def test_packing_real_examples():
    rows = load_rows(shared_data("alpaca_sft/llms_from_scratch_instructions.jsonl.gz"))
    examples = formats.examples(rows)
    tok = tokenizer.train_tokenizer([row["output"] for row in rows], vocab_size=500)
    data = arrays.packed(chat.encode_rows(tok, examples), length=256, pad_id=tok.pad_token_id)
    assert data.columns["mask"].mean() > 0.95  # little padding is what packing is for
