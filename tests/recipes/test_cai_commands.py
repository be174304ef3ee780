"""`jaxrlhf cai critique-revise`, `label` and `judge` on tiny models: files, figures, mistakes."""

import importlib
import json
import random
import shutil
import signal

import cai_tiny
import micro
import numpy as np
import pytest
from cai_tiny import by_numpy, interrupt, read

from jaxrlhf.constitutional import constitution, texts
from jaxrlhf.data import formats, preferences, sources
from jaxrlhf.recipes import RECIPES

CONSTITUTION = constitution.Constitution.model_validate(cai_tiny.CONSTITUTION)


@pytest.fixture
def home(tmp_path):
    return shutil.copytree(cai_tiny.folder(), tmp_path / "home")


@pytest.fixture
def cai(home, capfd):
    """Run a command in a folder of its own: the folder, or what it said where it failed."""

    def cai(name, *overrides):
        where = dict(x.split("=", 1) for x in overrides).get("output_dir", "run")
        code = cai_tiny.command(home, name, *overrides)
        said = " ".join(capfd.readouterr().err.split())
        if code:
            assert code == 2, said
            return said
        return home / where

    return cai


def done(folder):
    found = json.loads((folder / "done.json").read_text())
    assert found.pop("seconds") > 0
    return found


@pytest.mark.parametrize("name", cai_tiny.BASE)
def test_its_example_is_a_command(name):
    module = importlib.import_module(RECIPES[name].module)
    assert module.EXAMPLE.startswith(f"jaxrlhf {name} ")
    config = module.CONFIG.load(None, module.EXAMPLE.split()[3:])
    assert constitution.load(config.constitution).principles


# Critique and revision.


def test_chains_and_what_to_fine_tune_on(cai):
    folder = cai("cai critique-revise", "helpful=[helpful.jsonl]", "helpful_ratio=0.5")
    chains = read(folder / "chains.jsonl")
    assert [row["prompt"] for row in chains] == cai_tiny.PROMPTS
    kept = [row for row in chains if not row["discarded"]]
    assert 2 < len(kept) < 24  # a random model ends a text at once now and then
    assert all(len(row["revisions"]) == 2 and row["log_prob"] < 0 for row in kept)
    rows = read(folder / "sft.jsonl")
    revisions = [row for row in rows if row["source"] == "revision"]
    assert [row["completion"] for row in revisions] == [
        f" {one['revision']}" for row in kept for one in row["revisions"]
    ]
    assert revisions[0]["prompt"] == f"ask {kept[0]['prompt']}"
    helpful = [row for row in rows if row["source"] == "helpful"]
    assert len(helpful) == len(kept)  # half of two a chain
    assert len(formats.examples(sources.load_rows(str(folder / "sft.jsonl")))) == len(rows)
    summary = done(folder)
    reasons = summary.pop("reasons")
    assert all(reason.endswith(": empty") for reason in reasons)
    assert summary == {
        "prompts": 24,
        "discarded": 24 - len(kept),
        "revisions": 2 * len(kept),
        "helpful": len(kept),
    }
    assert sum(reasons.values()) == summary["discarded"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "chains.jsonl",
        "config.yaml",
        "constitution.yaml",
        "done.json",
        "prompts.jsonl",
        "sft.jsonl",
    ]
    assert read(folder / "prompts.jsonl") == [{"prompt": f"ask {x}"} for x in cai_tiny.PROMPTS]
    kept_constitution = constitution.load(folder / "constitution.yaml")
    assert kept_constitution == CONSTITUTION


def test_a_finished_stage_is_not_run_again(cai, home):
    folder = cai("cai critique-revise", "prompts.limit=4")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    shutil.rmtree(home / "model")
    assert cai("cai critique-revise", "prompts.limit=4") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_row_does_not_depend_on_the_batch_size(cai):
    """Texts are equal; log-probs but for rounding, which depends on the shape."""
    narrow, wide = (
        read(
            cai("cai critique-revise", f"output_dir=by{size}", f"batch_size={size}")
            / "chains.jsonl"
        )
        for size in (4, 8)
    )
    for a, b in zip(narrow, wide, strict=True):
        assert log_probs(a) == pytest.approx(log_probs(b), rel=1e-4)
        assert a == b


def log_probs(row):
    """Take the log-probs out of a row of chains; none where it was discarded."""
    parts = [(row, "log_prob")]
    for one in row["revisions"]:
        parts += [(one, "log_prob"), (one, "critique_log_prob")]
    found = [part.pop(name) for part, name in parts]
    return [x for x in found if x is not None]


HELPFUL = ("helpful=[helpful.jsonl]", "helpful_ratio=9")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("constitution=null",), "constitution: this command needs a value here"),
        (("constitution=defalt",), "constitution = 'defalt': must be one of default, helpful_only"),
        (("constitution=constituton.yaml",), "no such file; did you mean constitution.yaml?"),
        (("model_path=null",), "model_path: this command needs a value here"),
        (("model_path=modle",), "modle"),
        (("keep_unfinished=false", "sampling.stop_at_eos=false"), "no row is left of 24"),
        (HELPFUL, "helpful_ratio = 9.0"),
        (("prompts.files=[prompts.jsonl]", "sampling.response_length=64"), "no row is left of 24: "
         "24 response: longer than the model reads"),
        (("principles=0",), "principles = 0: must be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(cai, home, overrides, says):
    said = cai("cai critique-revise", *overrides)
    assert says in said
    assert not (home / "run" / "sft.jsonl").exists()


# Labels.


def test_labels_and_preferences(cai):
    folder = cai("cai label", "test_pairs=5", "ai_label_weight=0.5")
    labels = read(folder / "labels.jsonl")
    assert len(labels) == 48  # two of the four answers at a time
    for row in labels:
        first, second = row["judgements"]
        assert first["question"] == second["question"] and (first["order"], second["order"]) == (
            "ab",
            "ba",
        )
        (a, b), (c, d) = first["log_probs"], second["log_probs"]
        p = (1 / (1 + np.exp(b - a)) + 1 - 1 / (1 + np.exp(d - c))) / 2
        assert row["probability"] == pytest.approx(p)
    assert labels[0]["responses"] == ["a", "b"] and labels[1]["responses"] == ["e", "f"]
    train, test = (read(folder / f"{x}preferences.jsonl") for x in ("", "test_"))
    assert (len(train), len(test)) == (43, 5)
    assert {row["weight"] for row in train} == {0.5}
    found = formats.preferences(sources.load_rows(str(folder / "preferences.jsonl")))
    assert len(found) == 43
    assert all(item.label >= 0.5 and item.weight == 0.5 for item in found)
    summary = done(folder)
    assert summary["pairs"] == 48 and summary["discarded"] == summary["human"] == 0
    assert summary["entropy"] == pytest.approx(np.mean([row["entropy"] for row in labels]))
    confidence = [max(row["probability"], 1 - row["probability"]) for row in labels]
    assert summary["confidence"] == pytest.approx(np.mean(confidence))
    sides = np.array([[x["log_probs"] for x in row["judgements"]] for row in labels])
    first_place = 1 / (1 + np.exp(sides[..., 1] - sides[..., 0]))
    assert summary["first_place"] == pytest.approx(first_place.mean())
    same = (first_place[:, 0] > 0.5) == (first_place[:, 1] > 0.5)
    assert summary["same_place"] == pytest.approx(same.mean())


def test_calibrated_labels_like_no_place(cai):
    plain, folder = (cai("cai label", f"calibrate={x}", f"output_dir={x}") for x in ("no", "yes"))
    before, labels = (read(x / "labels.jsonl") for x in (plain, folder))
    (shift,) = {row["offset"] for row in labels}
    assert shift != 0 and all("offset" not in row for row in before)
    # What is read off the model is the same; the label is by the log-odds without the offset.
    assert [row["judgements"] for row in labels] == [row["judgements"] for row in before]
    sides = np.array([[x["log_probs"] for x in row["judgements"]] for row in labels])
    first = 1 / (1 + np.exp(shift + sides[..., 1] - sides[..., 0]))
    p = (first[:, 0] + 1 - first[:, 1]) / 2
    assert [row["probability"] for row in labels] == pytest.approx(p)
    assert done(folder)["first_place"] == pytest.approx(0.5) != done(plain)["first_place"]
    pairs = read(folder / "preferences.jsonl")
    assert [row["label"] for row in pairs] == pytest.approx(np.maximum(p, 1 - p))


def test_equal_answers_are_left_out_and_counted(cai, home):
    rows = [
        {"prompt": "a", "responses": ["b", " b"]},
        {"prompt": "c", "responses": ["d", "e", "f"]},
    ]
    cai_tiny.write(home / "samples.jsonl", rows)
    folder = cai("cai label")
    assert done(folder)["equal_pairs_left_out"] == 1
    (row,) = read(folder / "labels.jsonl")
    assert (row["prompt"], row["responses"]) == ("c", ["d", "e"])
    cai_tiny.write(home / "samples.jsonl", rows[:1])
    assert "no two different answers to one prompt" in cai("cai label", "output_dir=other")


def test_peoples_pairs_are_mixed_in_by_ratio(cai):
    folder = cai("cai label", "human=[pairs.jsonl]", "human_ratio=0.25")
    rows = read(folder / "preferences.jsonl")
    human = [row for row in rows if row["source"] == "human"]
    assert (len(rows), len(human)) == (48 + 12, 12)
    assert {(row["label"], row["weight"]) for row in human} == {(1.0, 1.0)}
    assert len(formats.preferences(sources.load_rows(str(folder / "preferences.jsonl")))) == 60
    said = cai("cai label", "human=[pairs.jsonl]", "human_ratio=1", "output_dir=other")
    assert "human_ratio = 1.0: 48 rows ask for 48 human rows, there are 24; at most 0.5" in said


def test_thoughts_are_written_and_clamped(cai):
    folder = cai("cai label", "think=true", "clamp=[0.4, 0.6]")
    labels = [row for row in read(folder / "labels.jsonl") if not row["discarded"]]
    assert all(one["reasoning"] for row in labels for one in row["judgements"])
    rows = read(folder / "preferences.jsonl")
    assert all(0.5 <= row["label"] <= 0.6 for row in rows)
    assert max(row["probability"] for row in rows) > 0.6


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("samples=null",), "samples: this command needs a value here"),
        (("clamp=[0.3, 0.6]",), "clamp = [0.3, 0.6]: must be [x, 1 - x]"),
        (("questions_per_pair=5",), "5 are to be drawn, but the constitution has 4"),
        (("test_pairs=48",), "test_pairs = 48: there are only 48 pairs"),
        (("server.url=http://localhost:1",), "model_path, server.url: give one of the two"),
        (("server.url=localhost:1",), "server.url = localhost:1"),
        (("server.url=http://x", "model_path=null"), "server.model: this command needs a value"),
        (
            ("server.url=http://x", "model_path=null", "server.model=m", "sampling.top_k=3"),
            "sampling: an endpoint takes response_length and temperature alone",
        ),
    ],
)
def test_mistakes_in_labelling_are_one_message(cai, home, overrides, says):
    assert says in cai("cai label", *overrides)
    assert not (home / "run" / "preferences.jsonl").exists()


# Judging.


def test_the_figures_are_those_of_numpy_from_the_same_log_probs(cai, capfd):
    folder = cai("cai judge", "pairs.group_by=kind", "questions_per_pair=2")
    judged = read(folder / "judgements.jsonl")
    assert len(judged) == 24
    summary = done(folder)
    known = read(folder.parent / "pairs.jsonl")
    for name in ("all", *(f"kind={x}" for x in cai_tiny.LETTERS)):
        members = [i for i in range(24) if name in ("all", f"kind={known[i]['kind']}")]
        assert by_numpy([judged[i] for i in members]) == pytest.approx(summary[name])


def test_pairs_under_other_names_and_an_unknown_group(cai, home):
    rename = ("pairs.files=[renamed.jsonl]", "pairs.columns={prompt: question}")
    folder = cai("cai judge", *rename)
    assert read(folder / "judgements.jsonl")[0]["prompt"] == "a a"
    said = cai("cai judge", "pairs.group_by=sort", "output_dir=other")
    assert "pairs.group_by = 'sort': the files have prompt, chosen, rejected, kind" in said


# Going on.


@pytest.mark.parametrize("name", list(cai_tiny.BASE))
def test_an_interrupted_run_makes_what_is_missing_and_nothing_else(cai, home, name):
    folder = cai(name)
    whole = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    assert whole
    for rows in (0, 5, 23):
        interrupt(folder, rows)
        assert cai(name) == folder
        assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl*")} == whole


@pytest.mark.parametrize(
    ("name", "more"),
    [("cai critique-revise", ()), ("cai label", ("think=true",)), ("cai judge", ())],
)
def test_a_killed_run_loses_no_row_and_makes_none_twice(cai, home, name, more):
    """SIGKILL while a line is being written; for one command again, before the run says so."""
    folder = cai(name, *more)
    whole = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    shutil.rmtree(folder)
    row, written = random.randint(2, 24), random.randint(0, 400)

    def killed(point):
        argv = (point, *name.split(), *cai_tiny.BASE[name], *more)
        code, said = micro.harmed(home, *argv)
        assert code == -signal.SIGKILL, (point, said)
        assert not (folder / "done.json").exists()

    killed(f"append:{row}:{written}")
    (partial,) = folder.glob("*.partial")
    lines = partial.read_bytes().splitlines(keepends=True)
    assert sum(line.endswith(b"\n") for line in lines) >= row - 1
    assert set(whole).isdisjoint(path.name for path in folder.iterdir())
    if name == "cai critique-revise":
        killed("done")
    assert cai(name, *more) == folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl*")} == whole


@pytest.mark.parametrize("name", list(cai_tiny.BASE))
def test_an_interrupted_run_goes_on_with_nothing_else(cai, home, name):
    partial = interrupt(cai(name), 5)
    before = whole_lines(partial)
    assert "holds a run with another config (seed: 0 there, 1 now)" in cai(name, "seed=1")
    text = (home / "constitution.yaml").read_text()
    (home / "constitution.yaml").write_text(
        text.replace("wrong d", "wrong e").replace("which d", "which e")
    )
    assert "was begun with another text of the constitution 'letters'" in cai(name)
    (home / "constitution.yaml").write_text(text)
    for data in ("prompts", "samples", "pairs"):
        path = home / f"{data}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "row 0 was made from other data than the files hold now" in cai(name)
    assert whole_lines(partial) == before


def whole_lines(folder):
    """The files of a folder, but for a line that was torn."""
    return {path.name: path.read_bytes().rpartition(b"\n")[0] for path in sorted(folder.iterdir())}


def test_chains_go_on_to_labels(cai, home):
    """What one command writes, the next reads: chains to examples, samples to labels to pairs."""
    folder = cai("cai critique-revise")
    examples = formats.examples(sources.load_rows(str(folder / "sft.jsonl")))
    samples = [{"prompt": item.prompt, "responses": ["a", "b"]} for item in examples]
    cai_tiny.write(home / "samples.jsonl", samples)
    labelled = cai("cai label", "output_dir=labels")
    assert len(read(labelled / "labels.jsonl")) == len(samples)
    assert len(preferences.read_samples(sources.load_rows(str(home / "samples.jsonl")))) > 4
    assert texts.prompt_text(samples[0]["prompt"]) == samples[0]["prompt"]
