"""`jaxrlhf elo`, `annotators`, `rate-answers` from the command line: files, figures, mistakes."""

import contextlib
import importlib
import json
from collections import Counter

import pytest
import ratings_probes
from realdata import shared_data
from scipy import special

from jaxrlhf import cli
from jaxrlhf.data import formats, sources
from jaxrlhf.recipes import RECIPES

COMMANDS = ("elo", "annotators", "rate-answers")
QUICK = ("interval=fisher", "online.orders=0")


@pytest.fixture
def command(tmp_path, capfd):
    """Run a command among the files of the probes: what it said, and the folder it wrote."""
    for name, text in ratings_probes.texts().items():
        (tmp_path / f"{name}.jsonl").write_text(text)

    def command(*argv: str, rows=(), code: int = 0):
        ratings_probes.write(tmp_path / "rows.jsonl", rows)
        capfd.readouterr()
        with contextlib.chdir(tmp_path):
            assert cli.main([*argv, "output_dir=out"]) == code
        said = " ".join(capfd.readouterr().err.split())
        if code:
            assert said.count("error:") == 1 and "Traceback" not in said
            assert not (tmp_path / "out").exists()
        return said, tmp_path / "out"

    return command


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def players(folder):
    found = json.loads((folder / "ratings.json").read_text())
    return found, {row["player"]: row for row in found["ratings"]}


@pytest.mark.parametrize("name", COMMANDS)
def test_its_example_is_a_command(name):
    module = importlib.import_module(RECIPES[name].module)
    assert module.EXAMPLE.startswith(f"jaxrlhf {name} ")
    first, *rest = module.EXAMPLE.split()[2:]
    module.CONFIG.load(None, [f"{RECIPES[name].positional}={first}", *rest])


# elo.


def test_a_table_a_picture_and_figures(command):
    options = ("anchor=base", "resamples=100", "cluster=prompt", "online.orders=2")
    said, folder = command("elo", "verdicts.jsonl", *options)
    assert (folder / "ratings.png").read_bytes().startswith(b"\x89PNG")
    found, ratings = players(folder)
    assert list(ratings) == ["ppo", "sft", "base"]  # best first
    assert [ratings["base"][x] for x in ("rating", "low", "high")] == [1000] * 3
    assert ratings["ppo"]["low"] < ratings["ppo"]["rating"] < ratings["ppo"]["high"]
    rows = ratings_probes.verdicts()
    assert sum(x["battles"] for x in ratings.values()) == 2 * len(rows) == 2 * found["battles"]
    table = (folder / "ratings.md").read_text()
    assert "| rank | player | rating |" in table and "bootstrap over prompts, 100 draws" in table
    assert "± by order" in table and "ppo" in said


def test_two_players_are_400_log10_odds(command):
    games = ["left"] * 9 + ["right"] * 3
    rows = [{"left": "x", "right": "y", "winner": winner} for winner in games]
    found, ratings = players(command("elo", "rows.jsonl", *QUICK, rows=rows)[1])
    # 9 : 3 is 400 log10 3 = 190.85 points, around a mean of 1000; each one's error is half that of
    # the difference: 173.72/√(12 · .75 · .25)/2 = 57.91. -.75 log .75 - .25 log .25 = .56234.
    assert ratings["x"]["rating"] == pytest.approx(1000 + 190.85 / 2, abs=0.01)
    assert ratings["x"]["high"] - ratings["x"]["rating"] == pytest.approx(1.96 * 57.91, abs=0.05)
    assert found["log_loss"] == pytest.approx(0.56234, abs=1e-5)
    assert ratings["x"]["rank"] == 1 and ratings["x"]["win_rate"] == 0.75
    assert "online_Elo" not in ratings["x"]


def test_ties_are_halves_dropped_or_an_outcome(command):
    rows = [{"left": "x", "right": "y", "winner": w} for w in ["left", "tie", "tie", "right"] * 3]
    rows += [{"left": "y", "right": "x", "winner": "right"}] * 2
    gaps = {}
    for ties in ("half", "drop", "davidson"):
        found, ratings = players(command("elo", "rows.jsonl", f"ties={ties}", *QUICK, rows=rows)[1])
        gaps[ties] = ratings["x"]["rating"] - ratings["y"]["rating"]
        assert found["battles"] == (8 if ties == "drop" else 14)
        assert found["ties"] == pytest.approx(6 / 14)
    # Five wins, six ties, three losses: log(8/6), log(5/3); Davidson's too, his win : loss is e^d.
    wanted = {"half": 21.72 * 2.3, "drop": 88.74, "davidson": 88.74}
    assert gaps["drop"] == pytest.approx(wanted["drop"], abs=0.01)
    assert gaps["davidson"] == pytest.approx(wanted["davidson"], abs=0.01)
    assert gaps["half"] == pytest.approx(49.98, abs=0.01)


def test_the_first_place_is_a_covariate(command):
    # Whoever stands first wins three of four; x stands first more often, and is no better.
    rows = [
        {"model_a": a, "model_b": b, "winner": w}
        for a, b, count in (("x", "y", 20), ("y", "x", 8))
        for w in ["a", "a", "a", "b"] * count
    ]
    said, folder = command(
        "elo", "rows.jsonl", "covariates=[first]", "effects_prior=0", *QUICK, rows=rows
    )
    found, ratings = players(folder)
    assert ratings["x"]["rating"] == pytest.approx(ratings["y"]["rating"], abs=1e-6)
    assert found["effects"]["first"][0] == pytest.approx(190.85, abs=0.01)
    assert "standing first is worth +190.8 points" in said


def test_length_is_blamed(command):
    rows = [
        {"model_a": "long", "model_b": "short", "a": "w" * n, "b": "w", "winner": winner}
        for n, winners in ((1, "aabb"), (9, "aaab"))
        for winner in winners * 10
    ]
    _, folder = command("elo", "rows.jsonl", "covariates=[length]", *QUICK, rows=rows)
    found, ratings = players(folder)
    assert abs(ratings["long"]["rating"] - ratings["short"]["rating"]) < 10
    assert found["effects"]["length"][0] > 50


def test_who_never_lost_is_named_and_a_prior_helps(command):
    rows = [{"left": "best", "right": x, "winner": "left"} for x in ("x", "y")]
    rows += [{"left": "x", "right": "y", "winner": w} for w in ("left", "right")]
    said, _ = command("elo", "rows.jsonl", rows=rows, code=2)
    assert "{best} > {x, y}; give a prior above 0" in said
    _, ratings = players(command("elo", "rows.jsonl", "phantom=1", *QUICK, rows=rows)[1])
    assert next(iter(ratings)) == "best"


MISTAKES = {
    "no such player": (("elo", "verdicts.jsonl", "anchor=bse"), "did you mean 'base'?"),
    "no such cluster": (("elo", "verdicts.jsonl", "cluster=promt"), "did you mean 'prompt'?"),
    "no such covariate": (("elo", "verdicts.jsonl", "covariates=[lenght]"), "mean 'length'?"),
    "a covariate of words": (
        ("elo", "verdicts.jsonl", "covariates=[annotator]"),
        "verdicts.jsonl:1: covariate 'annotator' must be a number: 'ann'",
    ),
    "no such file": (("elo", "verdict.jsonl"), "did you mean verdicts.jsonl?"),
    "no such column": (("elo", "wide.jsonl"), "battles need the columns model_a+model_b+winner"),
    "a column mapped to none": (
        ("elo", "verdicts.jsonl", "columns={winner: verdct}"),
        "did you mean 'verdict'?",
    ),
    "an unknown verdict": (
        ("elo", "bad.jsonl"),
        "bad.jsonl:109: unknown outcome: column 'verdict': 'perhaps'",
    ),
    "an impossible outcome": (
        ("elo", "verdicts.jsonl", "outcomes={better: 3}"),
        "outcomes: 'better' is 3.0: must be 1 (a), 0 (b) or 0.5 (tie)",
    ),
    "one cluster": (("elo", "fewer.jsonl", "cluster=cost_b"), "a bootstrap over one cluster (2.0)"),
    "annotators without a column": (("annotators", "wide.jsonl"), "no column 'pair_id'"),
    "no such annotator": (("annotators", "wide.jsonl", "wide=[on]"), "did you mean 'one'?"),
    "answers without texts": (("rate-answers", "swapped.jsonl"), "no column 'a'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message(command, name):
    argv, says = MISTAKES[name]
    assert says in command(*argv, code=2)[0]


def test_a_second_verdict_on_a_pair_is_refused(command):
    rows = ratings_probes.verdicts()
    said, _ = command("annotators", "rows.jsonl", rows=[*rows, rows[4]], code=2)
    assert "rows.jsonl:109: 'bob' judged '0-1' before, at rows.jsonl:5;" in said


# annotators.


def test_an_adversary_is_named_and_turned_round(command):
    said, folder = command("annotators", "verdicts.jsonl")
    found = json.loads((folder / "annotators.json").read_text())
    assert found["adversaries"] == ["eve"] and found["model"] == "dawid-skene"
    assert [row["annotator"] for row in found["by_annotator"]][-1] == "eve"
    assert "right less often than chance: eve" in said and "ADVERS" in said
    assert "predicts held-out labels better" in said
    assert "| annotator | verdicts | reliability |" in (folder / "annotators.md").read_text()
    # The labels follow ann and bob, where these two agree.
    said_first: dict[str, list[bool]] = {}
    for row in ratings_probes.verdicts():
        if row["annotator"] != "eve" and row["verdict"] != "tie":
            said_first.setdefault(row["pair_id"], []).append(row["verdict"] > 0)
    rows = {row["pair_id"]: row for row in read(folder / "labels.jsonl")}
    sides = {row["pair_id"]: row["a"] for row in ratings_probes.verdicts()}
    for pair, votes in said_first.items():
        if len(votes) == 2 and votes[0] == votes[1]:
            assert (rows[pair]["chosen"] == sides[pair]) == votes[0]


def test_its_labels_are_what_the_reward_model_reads(command):
    _, folder = command("annotators", "verdicts.jsonl", "model=majority")
    rows = read(folder / "labels.jsonl")
    pairs = formats.preferences(sources.load_rows(folder / "labels.jsonl"))
    assert [x.label for x in pairs] == [row["label"] for row in rows]
    assert all(0.5 <= x.label < 1 for x in pairs) and len(pairs) == 36
    assert all(row["verdicts"] == 3 for row in rows)


def test_one_label_a_pair_chooses_nothing(command):
    rows = [row for i, row in enumerate(ratings_probes.verdicts()) if i % 3 == i // 3 % 3]
    said, folder = command("annotators", "rows.jsonl", rows=rows)
    assert "labels by majority: no pair has two verdicts" in said
    assert json.loads((folder / "annotators.json").read_text())["held_out_gain"] is None


def test_columns_of_annotators(command):
    said, folder = command("annotators", "wide.jsonl", "wide=[one, two, three]")
    assert "16 pairs, 3.0 verdicts each" in said
    # 1 1 2, 2 2 2, 1 2 0, 1 1 1: of three pairs of labels each 1, 3, 0 and 3 agree.
    assert "agreement 0.583" in said
    assert len(read(folder / "labels.jsonl")) == 16


def test_pandalm(command):
    path = shared_data("pandalm_human_pairs") / "testset_v1.jsonl.gz"
    texts = "columns={prompt: instruction, a: response1, b: response2}"
    said, folder = command(
        "annotators", str(path), "wide=[annotator1, annotator2, annotator3]", texts
    )
    found = json.loads((folder / "annotators.json").read_text())
    assert round(found["agreement"], 4) == 0.9199 and found["model"] == "majority"
    assert found["adversaries"] == [] and "longer answer" in said
    # Some answers are the JSON values true or false, or blank; nothing can be trained on those.
    columns = ("instruction", "response1", "response2")
    usable = [
        row
        for row in sources.load_rows(path)
        if all(isinstance(row[name], str) and row[name].strip() for name in columns)
    ]
    assert len(read(folder / "labels.jsonl")) == len(usable) < 999
    assert f"{999 - len(usable)} pairs have no text" in said
    different = [row for row in usable if row["response1"] != row["response2"]]
    assert len(formats.preferences(sources.load_rows(folder / "labels.jsonl"))) == len(different)


# rate-answers.


def test_answers_of_a_prompt(command):
    rows = [
        {"prompt": "p", "a": a, "b": b, "verdict": 2}
        for a, b, count in (("good", "fair", 3), ("fair", "poor", 3), ("poor", "fair", 1))
        for _ in range(count)
    ]
    said, folder = command("rate-answers", "rows.jsonl", rows=rows)
    answers = {row["response"]: row for row in read(folder / "answers.jsonl")}
    assert answers["good"]["rating"] > answers["fair"]["rating"] > answers["poor"]["rating"]
    assert sum(x["rating"] for x in answers.values()) == pytest.approx(0, abs=1e-9)
    assert answers["fair"]["error"] < answers["good"]["error"]  # compared more often
    for x in answers.values():
        assert x["weight"] * x["error"] ** 2 == pytest.approx(
            answers["good"]["weight"] * answers["good"]["error"] ** 2
        )
    assert sum(x["weight"] for x in answers.values()) == pytest.approx(3)
    pairs = {(row["chosen"], row["rejected"]): row for row in read(folder / "preferences.jsonl")}
    assert list(pairs) == [("good", "fair"), ("good", "poor"), ("fair", "poor")]
    for (chosen, rejected), row in pairs.items():
        gap = answers[chosen]["rating"] - answers[rejected]["rating"]
        assert row["label"] == pytest.approx(special.expit(gap))
    assert "3 answers to 1 prompts, 4.7 comparisons an answer" in said


def test_margins_of_compared_pairs_for_the_reward_model(command):
    _, folder = command("rate-answers", "verdicts.jsonl", "target=margin", "pairs=compared")
    pairs = formats.preferences(sources.load_rows(folder / "preferences.jsonl"))
    assert all(x.margin >= 0 and x.label == 1 for x in pairs)
    met = {(row["prompt"], *sorted((row["a"], row["b"]))) for row in ratings_probes.verdicts()}
    found = Counter((x.prompt, *sorted((x.chosen, x.rejected))) for x in pairs)
    assert set(found) == met and set(found.values()) == {1}


def test_preference_pairs_are_comparisons_too(command):
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 3
    rows += [{"prompt": "p", "chosen": "no", "rejected": "yes"}]
    _, folder = command("rate-answers", "rows.jsonl", rows=rows)
    (pair,) = read(folder / "preferences.jsonl")
    assert pair["chosen"] == "yes" and 0.5 < pair["label"] < 0.75  # shrunk from 3/4


def test_regression_rows_say_how_sure_each_difference_is(command):
    rows = [
        {"prompt": "p", "a": a, "b": b, "verdict": 2}
        for a, b, count in (("good", "fair", 8), ("fair", "good", 4), ("fair", "poor", 1))
        for _ in range(count)
    ]
    _, folder = command("rate-answers", "rows.jsonl", "target=regression", rows=rows)
    answers = {row["response"]: row["rating"] for row in read(folder / "answers.jsonl")}
    pairs = {(row["chosen"], row["rejected"]): row for row in read(folder / "preferences.jsonl")}
    for (chosen, rejected), row in pairs.items():
        assert row["margin"] == pytest.approx(answers[chosen] - answers[rejected])
        assert "label" not in row
    weights = {pair: row["weight"] for pair, row in pairs.items()}
    assert sum(weights.values()) == pytest.approx(len(pairs))
    # Compared twelve times, once, and never.
    assert weights["good", "fair"] > weights["fair", "poor"] > weights["good", "poor"]
