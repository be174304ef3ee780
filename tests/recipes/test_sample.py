"""`jaxrlhf sample` from several models, without repetitions, and who reads its rows."""

import contextlib
from pathlib import Path

import pytest

from jaxrlhf.data import sources
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.labelling import formats
from jaxrlhf.recipes import sample, simulate_labels

SFT, PRETRAIN = "run/sft/model", "run/pretrain/model"
BASE = (
    *("prompts.files=[run/data/prompts.jsonl]", "prompts.limit=6", "prompts.max_length=6"),
    *("sampling.response_length=6", "batch_size=4"),
)


@pytest.fixture
def sampled(run, tmp_path):
    """Rows and summary of `jaxrlhf sample`."""

    def sampled(*overrides: str) -> tuple[list[dict], dict]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        with contextlib.chdir(run.parent):
            config = sample.CONFIG.load(None, (*BASE, f"output_dir={out}", *overrides))
            summary = sample.run(config)
        return list(sources.load_rows(out / "samples.jsonl")), summary

    return sampled


def test_answers_of_several_models_take_turns(sampled):
    alone, _ = sampled(f"model_path={SFT}", "samples_per_prompt=2")
    both, summary = sampled(f"models=[{SFT}, {PRETRAIN}]", "samples_per_prompt=2")
    assert summary["samples"] == 24 and summary["prompts"] == 6
    for one, row in zip(alone, both, strict=True):
        assert row["models"] == [SFT, PRETRAIN, SFT, PRETRAIN]
        assert "model" not in row and (row["temperature"], row["seed"]) == (1.0, 0)
        assert one["model"] == SFT and "models" not in one
        # The first model is asked as if it were alone.
        assert (row["prompt"], row["responses"][::2]) == (one["prompt"], one["responses"])
        assert row["complete"][::2] == one["complete"]


def test_a_model_named_twice_is_asked_with_other_random_numbers(sampled):
    """Four answers of one model, drawn as two and two, are the four it gives at once."""
    twice, _ = sampled(f"models=[{SFT}, {SFT}]", "samples_per_prompt=2")
    once, _ = sampled(f"models=[{SFT}]", "samples_per_prompt=4")
    for a, b in zip(twice, once, strict=True):
        assert a["responses"] == [b["responses"][i] for i in (0, 2, 1, 3)]


def test_equal_answers_are_kept_once(sampled):
    greedy = (f"models=[{SFT}, {SFT}, {PRETRAIN}]", "sampling.temperature=0", "deduplicate=true")
    rows, summary = sampled(*greedy)
    other, _ = sampled(f"model_path={PRETRAIN}", "sampling.temperature=0", "samples_per_prompt=1")
    same = sum(
        row["responses"][0] == one["responses"][0] for row, one in zip(rows, other, strict=True)
    )
    # 6 prompts, 3 models, 2 answers each: 36 answers, of which each model gives only one kind.
    assert summary["equal_answers_left_out"] == 36 - (12 - same)
    for row, one in zip(rows, other, strict=True):
        assert len(set(row["responses"])) == len(row["responses"]) == len(row["complete"])
        assert row["models"][0] == SFT
        if len(row["responses"]) == 2:
            assert row["responses"][1] == one["responses"][0] and row["models"][1] == PRETRAIN


def test_the_first_of_equal_answers_stays_in_its_place():
    texts = ["a", "b", "a", "c", "b"]
    answers = [sample.Answer(text, True, str(i), 1) for i, text in enumerate(texts)]
    kept = sample.without_repetition(answers)
    assert [(one.text, one.model) for one in kept] == [("a", "0"), ("b", "1"), ("c", "3")]


def test_labellers_read_the_rows(sampled, run, tmp_path):
    rows, _ = sampled(f"models=[{SFT}, {PRETRAIN}]", "samples_per_prompt=2")
    path = next(tmp_path.rglob("samples.jsonl"))
    found = formats.read([str(path)]).pairs
    wanted = [
        (row["prompt"], *row["responses"][i : i + 2])
        for row in rows
        for i in (0, 2)
        if row["responses"][i] != row["responses"][i + 1]
    ]
    assert wanted and [(pair.prompt, pair.a, pair.b) for pair in found] == wanted
    assert {(pair.model_a, pair.model_b) for pair in found} == {(SFT, PRETRAIN)}
    overrides = (f"samples={path}", f"output_dir={tmp_path / 'judged'}")
    summary = simulate_labels.run(simulate_labels.CONFIG.load(None, overrides))
    assert summary["pairs"] == len(wanted)


def test_mistakes_are_told_before_anything_is_asked(sampled, tmp_path):
    with pytest.raises(ConfigError, match="model_path, models: give one of the two"):
        sampled(f"model_path={SFT}", f"models=[{PRETRAIN}]")
    with pytest.raises(UserError, match="run/none"):
        sampled(f"models=[{SFT}, run/none]")
    with pytest.raises(ConfigError, match="model_path"):
        sampled()
    assert not list(Path(tmp_path).rglob("*.jsonl"))
