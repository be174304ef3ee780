"""Constitutional AI on real files: the paper's principles, few-shot prompts and comparisons.

The model is a random one in a Hugging Face folder with GPT-2's tokenizer: what it says is noise,
but every stage reads, runs, goes on after an interruption, and writes rows that the next one takes.
"""

import json
from pathlib import Path

import jax
import micro
import pytest
from cai_tiny import by_numpy, interrupt, read
from realdata import shared_data

from jaxrlhf.data import formats, preferences, sources, tokenizer
from jaxrlhf.models import make_lm, transformer_config
from jaxrlhf.recipes import saved

ASK = (
    *("model_path=model", "keep_unfinished=true", "batch_size=8", "few_shot=1"),
    "sampling.response_length=8",
)
TRAIN = ("batch_size=8", "max_steps=1", "max_length=256", "tensorboard=false")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("real")
    words = tokenizer.load_tokenizer(str(shared_data("tokenizers/gpt2")))
    sizes = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "d_model": 16, "d_ff": 16}
    config = transformer_config("gpt2", vocab_size=len(words), max_positions=2048, **sizes)
    lm = make_lm(config)
    saved.save_lm(home / "model", lm, lm.init(jax.random.key(0)), words)
    return home


def must(home: Path, *argv: str) -> None:
    assert micro.command(home, *argv) == 0, argv


def again(home: Path, folder: Path, rows: int, *argv: str) -> None:
    """Interrupt a finished command after so many rows; it must write the same files again."""
    whole = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    interrupt(folder, rows)
    must(home, *argv)
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl*")} == whole


def test_every_stage_takes_what_the_one_before_it_wrote(home):
    originals = shared_data("constitutional_ai")
    revise = (
        *("cai", "critique-revise", *ASK, f"constitution={originals}", "output_dir=revisions"),
        f"prompts.files=[{shared_data('harmful_prompts/harmful_questions.jsonl.gz')}]",
        *("prompts.columns={prompt: question}", "prompts.limit=8", "rounds=1"),
    )
    must(home, *revise)
    again(home, home / "revisions", 3, *revise)
    chains = read(home / "revisions" / "chains.jsonl")
    assert len(chains) == 8
    known = {f"harmful{number}" for number in range(16)}
    assert {one["principle"] for row in chains for one in row["revisions"]} <= known
    rows = formats.examples(sources.load_rows(str(home / "revisions" / "sft.jsonl")))
    assert len(rows) == sum(not row["discarded"] for row in chains) > 4

    tune = ("sft", "model_path=model", "data.train=[revisions/sft.jsonl]", "output_dir=sl")
    must(home, *tune, "packing=none", *TRAIN)
    must(
        home,
        *("sample", "model_path=sl/model", "prompts.files=[revisions/prompts.jsonl]"),
        *("sampling.response_length=8", "batch_size=8", "output_dir=samples"),
        "samples_per_prompt=2",
    )
    samples = preferences.read_samples(sources.load_rows(str(home / "samples" / "samples.jsonl")))
    assert samples[0].prompt[-1]["content"] == chains[0]["prompt"]

    label = (
        *("cai", "label", *ASK, f"constitution={originals}", "output_dir=labels"),
        *("samples=samples/samples.jsonl", "think=true", "clamp=[0.4, 0.6]"),
    )
    must(home, *label)
    again(home, home / "labels", 2, *label)
    pairs = formats.preferences(sources.load_rows(str(home / "labels" / "preferences.jsonl")))
    assert len(pairs) == 8 and all(0.5 <= pair.label <= 0.6 for pair in pairs)
    must(
        home,
        *("reward", "model_path=sl/model", "data.train=[labels/preferences.jsonl]"),
        *("output_dir=pm", *TRAIN),
    )
    assert (home / "pm" / "model" / "model.safetensors").is_file()


COMPARISONS = {
    "hhh": (
        "constitutional_ai/hhh_evaluations_part.jsonl.gz",
        ("pairs.columns={chosen: text_correct, rejected: text_incorrect}", "pairs.limit=64"),
        64,
    ),
    "rmb": (
        "rmb_pairs/test.jsonl.gz",
        ("pairs.columns={prompt: conversation}", "pairs.limit=24", "pairs.group_by=goal"),
        24,
    ),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_public_comparisons_are_scored_as_numpy_would(home, name):
    file, more, count = COMPARISONS[name]
    argv = ("cai", "judge", "model_path=model", "constitution=default", "few_shot=0")
    must(home, *argv, f"pairs.files=[{shared_data(file)}]", *more, f"output_dir={name}")
    judged = read(home / name / "judgements.jsonl")
    summary = json.loads((home / name / "done.json").read_text())
    assert len(judged) == count and summary["discarded"] == 0
    expected = by_numpy(judged)
    prompts = [str(row["prompt"]) for row in judged]
    if len(set(prompts)) < count:  # the interval is a bootstrap over prompts, not Wilson's
        low, high = (expected.pop(f"accuracy_{side}") for side in ("low", "high"))
        found = [summary["all"].pop(f"accuracy_{side}") for side in ("low", "high")]
        assert found == pytest.approx([low, high], abs=0.1)
    assert summary["all"] == pytest.approx(expected)
    if name == "rmb":
        assert summary["goal=Harmlessness"]["pairs"] == 24  # the file begins with them
    assert all(row["judgements"][0]["log_probs"][0] < 0 for row in judged)
