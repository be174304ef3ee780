"""`jaxrlhf classify` on the tiny pipeline's model: texts and pairs, probes, what is predicted."""

import json
from pathlib import Path

import jax
import micro
import numpy as np
import pytest

from jaxrlhf import checkpoint, inference
from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.hf import folder
from jaxrlhf.metrics import read_metrics
from jaxrlhf.recipes import blocks, classify, saved
from jaxrlhf.recipes.supervisors import probs

FIXED = ("model_path=run/sft/model", "batch_size=8", "max_length=40", "tensorboard=false")


@pytest.fixture(scope="module")
def home():
    """The tiny pipeline, and labelled texts beside it: class 1 is about soup, class 0 about pie."""
    root = micro.pipeline()
    rows = [
        {"text": f"the kind {who} brought a warm {dish} .", "label": float(dish == "soup")}
        for who in ("waiter", "cook", "guest", "baker")
        for dish in ("soup", "pie")
        for _ in range(4)
    ]
    preferences.write_rows(root / "dishes.jsonl", rows)
    soft = [{**row, "label": 0.1 + 0.8 * row["label"]} for row in rows]
    preferences.write_rows(root / "soft.jsonl", soft)
    return root


@pytest.fixture
def run(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)

    def run(*overrides: str, name: str = "out"):
        base = (f"output_dir={tmp_path}/{name}", *FIXED, *overrides)
        config = classify.ClassifyConfig.load(None, base)
        return classify.run(config), tmp_path / name

    return run


LEARN = ("max_steps=30", "optimizer.learning_rate=1e-2", "data.test=[dishes.jsonl]")


def test_it_learns_soft_labels_and_predicts_whole_files(run):
    summary, out = run(*LEARN, "data.train=[soft.jsonl]", "eval_steps=15", "predict=[dishes.jsonl]")
    assert summary["eval/test_accuracy"] == 1.0 and summary["rows"] == 32
    found, truth = (sources.load_rows(f) for f in (out / "predicted/dishes.jsonl", "dishes.jsonl"))
    assert [row["text"] for row in found] == [row["text"] for row in truth]
    said, right = probs(found), probs(truth)
    np.testing.assert_allclose(said.sum(axis=1), 1, rtol=1e-6)
    assert (said.argmax(1) == right.argmax(1)).all()
    steps = [int(row["step"]) for row in read_metrics(out) if "eval/test_accuracy" in row]
    assert steps == [0, 15, 30]
    assert read_metrics(out)[0]["eval/test_accuracy"] == 0.5  # a head of zeros says class 0
    # what was predicted is a file to learn from; finished is finished
    again, _ = run(*LEARN, f"data.train=[{out}/predicted/dishes.jsonl]", name="next")
    assert again["eval/test_accuracy"] == 1.0
    assert run(*LEARN, "data.train=[soft.jsonl]", "eval_steps=15", "predict=[dishes.jsonl]") == (
        summary,
        out,
    )


def test_more_than_two_classes(run, tmp_path):
    rows = [
        {"text": f"the kind cook brought a warm {dish} .", "label": number}
        for number, dish in enumerate(("soup", "pie", "stew"))
        for _ in range(8)
    ]
    preferences.write_rows(tmp_path / "three.jsonl", rows)
    given = (f"data.train=[{tmp_path}/three.jsonl]", f"data.test=[{tmp_path}/three.jsonl]")
    loss = ("loss.threshold=argmax", "loss.max_weight=0.1")
    summary, _ = run(*given, *LEARN[:2], *loss, "classes=3", "max_steps=80")
    assert summary["eval/test_accuracy"] == 1.0
    with pytest.raises(ConfigError, match="loss: 3 classes, and this loss tells two apart"):
        run(*given, "classes=3")


def test_a_probe_learns_too_and_leaves_the_body_alone(run):
    _, out = run(*LEARN, "data.train=[soft.jsonl]", "tuning=probe", "max_steps=2", "seed=3")
    names = checkpoint.stored_names(out / "checkpoints", 2)
    assert [name for name in names if name.startswith("params/")] == ["params/classifier/kernel"]


def test_validation_rows_are_the_last_and_are_not_trained_on(run):
    summary, out = run(
        "data.train=[soft.jsonl]", "validation_rows=8", "max_steps=1", "data.test=[dishes.jsonl]"
    )
    assert summary["rows"] == 24
    first = read_metrics(out)[0]
    assert first["eval/validation_loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert first["eval/test_loss"] == pytest.approx(np.log(2), rel=1e-6)


def test_a_judge_of_pairs_is_saved_as_a_reward_model(run, home):
    labelled = sources.load_rows(home / "run/label/preferences.jsonl")
    spoken = [json.dumps(dict(row)) for row in labelled if row["chosen"] and row["rejected"]]
    (home / "pairs.jsonl").write_text("\n".join(spoken) + "\n")
    summary, out = run(
        "reads=pairs",
        "data.train=[pairs.jsonl]",
        "data.test=[pairs.jsonl]",
        "predict=[pairs.jsonl]",
        "max_steps=3",
        "max_length=40",
    )
    source = sources.load_rows(home / "pairs.jsonl")
    said = probs(sources.load_rows(out / "predicted/pairs.jsonl"))
    assert said.shape == (len(source), 2)
    right = float((said[:, 1] > 0.5).mean())  # `chosen` is the better one in these files
    assert summary["eval/test_accuracy"] == pytest.approx(right)
    assert folder.load_config(out / "model").kind == "scalar"
    model, params, tokenizer, _ = saved.load_scalar(str(out / "model"), blocks.MeshConfig().build())
    config = classify.ClassifyConfig(reads="pairs", max_length=40)
    rows = classify.to_arrays(config, tokenizer, source)
    scores = [
        np.asarray(
            inference.reward_scores(
                model, params, rows.columns[f"{side}_tokens"], rows.columns[f"{side}_mask"]
            )
        )
        for side in ("chosen", "rejected")
    ]
    np.testing.assert_allclose(said[:, 1], jax.nn.sigmoid(scores[0] - scores[1]), atol=1e-5)


def test_a_head_of_words_starts_as_the_output_layer(run):
    words = ("class_words=[pie, soup]", "data.train=[soft.jsonl]", "max_steps=1")
    _, out = run(*words, "predict=[dishes.jsonl]", "optimizer.learning_rate=0")
    lm, params, tokenizer, _ = saved.load_lm("run/sft/model", blocks.MeshConfig().build())
    source = sources.load_rows("dishes.jsonl")
    text = source[0]["text"]
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    logits = lm.logits(params, lm.hidden(params, ids, ids > 0))[0, -1]
    both = logits[np.array(tokenizer.convert_tokens_to_ids(["pie", "soup"]))]
    said = probs(sources.load_rows(out / "predicted/dishes.jsonl"))[0]
    np.testing.assert_allclose(said, jax.nn.softmax(both), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("class_words=[pie]",), "1 words for 2 classes"),
        (("class_words=[pie, zebra]",), "'zebra' is unknown"),
        (("validation_rows=32",), "there are only 32 training rows"),
        (
            ("reads=pairs", "class_words=[pie, soup]", "data.train=[run/label/preferences.jsonl]"),
            "pairs have two outcomes",
        ),
        (("predict=[dishes.jsonl, run/../dishes.jsonl]",), "two files of one name"),
        (("max_length=99",), "reads at most 48 tokens"),
    ],
)
def test_what_does_not_fit_is_named(run, overrides, says):
    with pytest.raises(ConfigError, match=says):
        run("data.train=[soft.jsonl]", *overrides)


def test_labels_that_are_none_name_file_and_line(run, tmp_path):
    bad = Path(tmp_path / "bad.jsonl")
    bad.write_text('{"text": "a soup", "label": 0}\n{"text": "a pie", "label": 2}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: .* must be from 0 to 1: 2"):
        run(f"data.train=[{bad}]")
