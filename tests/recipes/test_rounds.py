"""`jaxrlhf rounds` at its smallest: what stages leave, rounds that go on, people, SIGKILL."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import micro
import pytest
import rounds_plans
import safetensors.numpy
from rounds_plans import STAGES, observed

from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError, UserError, WaitingError
from jaxrlhf.labelling.records import Verdict
from jaxrlhf.labelling.store import Store
from jaxrlhf.recipes import rounds_data, rounds_people
from jaxrlhf.recipes.rounds_data import Files
from jaxrlhf.recipes.rounds_people import PeopleConfig

COMMAND = ("rounds", "--config", "rounds.yaml")
ALL = ("start", *(f"round-{n}/{stage}" for n in (1, 2) for stage in STAGES))


@pytest.fixture(scope="module")
def run() -> Path:
    return rounds_plans.pipeline() / "rounds"


def read(path: Path) -> list[dict]:
    return [dict(row) for row in sources.load_rows(path)]


def lasting(root: Path) -> dict[str, Any]:
    """Rows and models of a run, and its figures without times."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("round-*/**/*")):
        name = str(path.relative_to(root))
        if path.suffix == ".jsonl" and path.stem not in ("metrics", "completions"):
            found[name] = path.read_text()
        elif path.name == "model.safetensors" and path.parent.name == "model":
            arrays = safetensors.numpy.load_file(path)
            found[name] = {key: x.tobytes() for key, x in arrays.items()}
    return found | {"rounds": json.loads((root / "rounds.json").read_text())}


# The smallest run.


def test_every_stage_of_every_round_is_finished(run):
    assert {str(p.parent.relative_to(run)) for p in run.rglob("done.json")} == set(ALL)


def test_a_round_is_about_the_policy_of_the_round_before(run):
    asked = {n: read(run / f"round-{n}" / "pairs.jsonl") for n in (1, 2)}
    assert {row["model"] for row in asked[1]} == {"run/sft/model"}
    assert {row["model"] for row in asked[2]} == {"rounds/round-1/ppo/model"}
    assert all({row["round"] for row in rows} == {n} for n, rows in asked.items())
    assert all(len(rows) == 16 for rows in asked.values())
    ids = [rounds_data._id(row) for rows in asked.values() for row in rows]
    assert len(set(ids)) == 32


def test_no_prompt_both_trains_and_tests_in_any_round(run):
    train = {row["prompt"] for row in read(run / "round-2" / "train.jsonl")}
    test = {row["prompt"] for n in (1, 2) for row in read(run / f"round-{n}" / "test.jsonl")}
    assert train and test and not train & test
    # All labels are there, each with its round.
    labelled = [read(run / f"round-{n}" / "label" / "preferences.jsonl") for n in (1, 2)]
    both = [read(run / f"round-{n}" / "test.jsonl") for n in (1, 2)]
    rows = read(run / "round-2" / "train.jsonl")
    assert len(rows) + sum(map(len, both)) == sum(map(len, labelled)) == 32
    assert {row["round"] for row in rows} == {1, 2}


def test_the_report_has_a_line_a_round(run):
    found = json.loads((run / "rounds.json").read_text())["by_round"]
    assert [(row["round"], row["labels"]) for row in found] == [(1, 16), (2, 32)]
    for row in found:
        assert 0 <= row["accuracy_after"] <= 1 and row["kl"] > 0
        low, high = row["gold_gain_sd_interval"]
        assert low <= row["gold_gain_sd"] <= high
    page = (run / "report" / "report.html").read_text()
    for words in ("By round", "accuracy, new policy", "labels so far", "PPO"):
        assert words in page
    plots = {path.stem for path in (run / "report" / "plots").iterdir()}
    assert {"gold_and_kl", "accuracy", "gold_by_kl", "ppo_round-2"} <= plots


def test_more_rounds_go_on_from_where_it_was_and_nothing_is_run_again(tmp_path, run, unpainted):
    folder = rounds_plans.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")}
    assert micro.command(folder, *COMMAND) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("done.json")} == before
    assert lasting(folder / "rounds") == lasting(run)
    assert micro.command(folder, *COMMAND, "rounds=3", "pairs=17") == 2  # that would be another run
    assert micro.command(folder, *COMMAND, "rounds=1") == 0
    found = json.loads((folder / "rounds" / "rounds.json").read_text())
    assert found["rounds"] == 1
    assert found["by_round"] == json.loads((run / "rounds.json").read_text())["by_round"][:1]


def test_killed_anywhere_it_goes_on_and_loses_no_label(tmp_path, run, unpainted):
    """SIGKILL when a stage is done but for its mark, and in the middle of a save of PPO."""
    folder = rounds_plans.copy(tmp_path, "start", "round-1", "round-2")
    number = random.randint(1, len(ALL))
    code, said = micro.harmed(folder, f"done:{number}", *COMMAND)
    assert code == -signal.SIGKILL, (number, said)
    marked = {
        str(p.parent.relative_to(folder / "rounds")) for p in folder.rglob("rounds/**/done.json")
    }
    assert marked == set(ALL[: number - 1])
    kept = {name: (folder / "rounds" / name / "done.json").stat().st_mtime_ns for name in marked}
    if not any(name.endswith("ppo") for name in ALL[number:]):
        number = None  # no PPO is left to be killed in
    else:
        operation = random.randint(2, 18)
        point = f"save:2:{operation}"
        code, said = micro.harmed(folder, point, *COMMAND)
        assert code == -signal.SIGKILL, (number, operation, said)
    assert micro.command(folder, *COMMAND) == 0
    for name, time in kept.items():
        assert (folder / "rounds" / name / "done.json").stat().st_mtime_ns == time
    assert lasting(folder / "rounds") == lasting(run), number


# What stages are given.


def test_models_of_a_round_start_anew_or_go_on():
    anew, on = observed(), observed("policy_init=previous", "reward_init=previous")
    first = "runs/rounds/sft/model"
    for found in (anew, on):
        assert found["runs/rounds/round-1/ppo"]["policy"] == first
        assert found["runs/rounds/round-1/reward"]["model_path"] == first
        for n in (1, 2):
            assert found[f"runs/rounds/round-{n}/ppo"]["reference"] == first
            assert found[f"runs/rounds/round-{n}/reward"]["reference"] == first
    assert anew["runs/rounds/round-2/ppo"]["policy"] == first
    assert anew["runs/rounds/round-2/reward"]["model_path"] == first
    assert on["runs/rounds/round-2/ppo"]["policy"] == "runs/rounds/round-1/ppo/model"
    assert on["runs/rounds/round-2/reward"]["warm_start"] == "runs/rounds/round-1/reward/model"
    assert on["runs/rounds/round-2/reward"]["model_path"] is None
    for found in (anew, on):  # whoever trains, the newest policy answers
        assert found["runs/rounds/round-2/sample"]["model_path"] == "runs/rounds/round-1/ppo/model"


def test_a_round_may_stop_at_its_share_of_the_kl():
    found = observed("kl_step=3", "ppo.eval_steps=2", "ppo.stop_kl=50")
    assert [found[f"runs/rounds/round-{n}/ppo"]["stop_kl"] for n in (1, 2)] == [3, 6]
    found = observed("ppo.eval_steps=2", "ppo.stop_kl=50")
    assert [found[f"runs/rounds/round-{n}/ppo"]["stop_kl"] for n in (1, 2)] == [50, 50]


def test_rounds_have_seeds_of_their_own():
    found = observed()
    seeds = [found[f"runs/rounds/round-{n}/{stage}"]["seed"] for n in (1, 2) for stage in ("ppo",)]
    assert len({0, *seeds}) == 3


def test_a_judge_labels_the_same_pairs():
    found = observed("labeller=judge", "judge.model_path=judge")
    given = found["runs/rounds/round-2/label"]
    assert given["model_path"] == "judge"
    assert given["samples"] == "runs/rounds/round-2/pairs.jsonl"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sample.model_path=a", "sample.model_path: set model_path once"),
        ("label.test_pairs=4", "label.test_pairs: set test_share once"),
        ("judge.test_pairs=4", "judge.test_pairs: set test_share once"),
        ("reward.data.train=[a]", "reward.data.train: set pairs once"),
        ("ppo.policy=a", "ppo.policy: set policy_init once"),
        ("ppo.seed=3", "ppo.seed: set seed once"),
    ],
)
def test_what_the_rounds_decide_is_refused_in_a_stage(override, says):
    with pytest.raises(ConfigError, match=says):
        observed(override)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("pretrain=null",), "give one of the two"),
        (("model_path=a",), "give one of the two"),
        (("kl_step=3",), "kl_step = 3.0: needs evaluations; set ppo.eval_steps"),
        (("task.kind=files",), "labeller = simulated: needs task.kind: sandbox, not files"),
        (("mix=some",), "mix"),
    ],
)
def test_configs_that_do_not_fit(overrides, says):
    with pytest.raises(ConfigError, match=says):
        observed(*overrides)


# Files.


@pytest.fixture
def files(tmp_path) -> Files:
    for number, count in ((1, 6), (2, 2)):
        folder = Files(tmp_path, number).folder / "label"
        folder.mkdir(parents=True)
        rows = [
            {"prompt": f"p{i}", "chosen": f"{number} yes {i}", "rejected": "no", "weight": 2.0}
            for i in range(count)
        ]
        preferences.write_rows(folder / "preferences.jsonl", rows)
    return Files(tmp_path, 2)


def test_rounds_count_alike_or_by_their_pairs(files):
    rounds_data.write_data(files, mix="all", test_share=0)
    assert [row["weight"] for row in read(files.train)] == [2.0] * 8
    rounds_data.write_data(files, mix="uniform", test_share=0)
    # Eight pairs of two rounds, four a round on average: 6 pairs of 4/6, 2 of 4/2, each times 2.
    weights = [row["weight"] for row in read(files.train)]
    assert weights == pytest.approx([4 / 3] * 6 + [4.0] * 2)
    rounds_data.write_data(files, mix="last", test_share=0)
    assert [row["chosen"] for row in read(files.train)] == ["2 yes 0", "2 yes 1"]
    assert rounds_data.tests(files) == ()


def test_a_prompt_tests_in_every_round_or_in_none(files):
    share = 0.4
    rounds_data.write_data(files, mix="all", test_share=share)
    trained = {row["prompt"] for row in read(files.train)}
    held_out = {f"p{i}" for i in range(6) if rounds_data.is_held_out(f"p{i}", share)}
    assert trained == {f"p{i}" for i in range(6)} - held_out and held_out
    counts = [rounds_data.is_held_out(f"prompt {i}", 0.25) for i in range(4000)]
    assert sum(counts) == pytest.approx(1000, abs=3 * 28)  # three times √(4000 · ¼ · ¾)


def test_all_pairs_testing_is_refused(files):
    with pytest.raises(UserError, match="fewer than test_share"):
        rounds_data.write_data(files, mix="all", test_share=0.9999999)


def test_prompts_take_turns(tmp_path):
    source = tmp_path / "prompts.jsonl"
    preferences.write_rows(source, [{"prompt": f"p{i}"} for i in range(5)])
    said = []
    for number in (1, 2):
        one = Files(tmp_path, number)
        rounds_data.write_prompts(one, (str(source),), limit=None, pairs=2, spare=1.5)
        said.append([row["prompt"] for row in read(one.prompts)])
    assert said == [["p0", "p1", "p2"], ["p3", "p4", "p0"]]
    rounds_data.write_prompts(one, (str(source),), limit=2, pairs=3, spare=1)
    # Of two prompts, the second round of three begins at the fourth, which is the second again.
    assert [row["prompt"] for row in read(one.prompts)] == ["p1", "p0", "p1"]
    with pytest.raises(ConfigError, match=r"sample.prompts.files: name at least one"):
        rounds_data.write_prompts(one, (), limit=None, pairs=3, spare=1)


def samples(files: Files, rows: list[tuple[str, list[str]]]) -> None:
    (files.folder / "sample").mkdir(parents=True, exist_ok=True)
    records = [{"prompt": prompt, "responses": said, "model": "m"} for prompt, said in rows]
    preferences.write_rows(files.folder / "sample" / "samples.jsonl", records)


def test_pairs_are_different_answers_that_were_not_compared_before(tmp_path):
    one, two = Files(tmp_path, 1), Files(tmp_path, 2)
    samples(one, [("p", ["a", "b"]), ("p", ["b", "a"]), ("q", ["a", "a"]), ("q", ["a", "b"])])
    assert rounds_data.write_pairs(one, pairs=9) == 2
    assert [(r["prompt"], r["responses"]) for r in read(one.pairs)] == [
        ("p", ["a", "b"]),
        ("q", ["a", "b"]),
    ]
    samples(two, [("p", ["a", "b"]), ("p", ["c", "b", "a", "d"])])
    assert rounds_data.write_pairs(two, pairs=1) == 1
    assert read(two.pairs)[0]["responses"] == ["c", "b"]
    samples(two, [("p", ["b", "a"])])
    with pytest.raises(UserError, match="always says the same"):
        rounds_data.write_pairs(two, pairs=1)


# People.


@pytest.fixture
def asked(tmp_path) -> dict[str, Any]:
    rows = [
        {"prompt": f"p{i}", "responses": [f"yes {i}", f"no {i}"], "round": 2, "model": "m"}
        for i in range(3)
    ]
    preferences.write_rows(tmp_path / "pairs.jsonl", rows)
    given = {"samples": str(tmp_path / "pairs.jsonl"), "store": str(tmp_path / "labels.sqlite")}
    return {"folder": str(tmp_path / "label"), **given}


def judge(store: str, name: str, verdicts: dict[str, Any]) -> None:
    with Store(store) as opened:
        for pair in opened.pairs():
            if pair.prompt in verdicts:
                opened.record(Verdict(pair.pair_id, name, verdicts[pair.prompt]))


def test_people_are_waited_for_and_none_of_their_verdicts_is_asked_twice(asked, tmp_path):
    folder = asked.pop("folder")
    config = PeopleConfig(overlap=2, labels=(0.6, 0.75, 0.9, 0.97))
    with pytest.raises(WaitingError, match=r"0 of the 3 pairs .* of 2 people.*jaxrlhf label"):
        rounds_people.run(folder, config, **asked)
    with Store(asked["store"]) as store:
        assert [(p.prompt, p.round, p.model_a) for p in store.pairs()] == [
            (f"p{i}", 2, "m") for i in range(3)
        ]
    judge(asked["store"], "ann", {"p0": 4, "p1": -2, "p2": "tie"})
    judge(asked["store"], "bob", {"p0": 1, "p1": -1})
    with pytest.raises(WaitingError, match="2 of the 3"):
        rounds_people.run(folder, config, **asked)
    judge(asked["store"], "bob", {"p2": "tie"})
    assert rounds_people.run(folder, config, **asked)["pairs"] == 4
    rows = read(Path(folder) / "preferences.jsonl")
    assert [(r["prompt"], r["chosen"], r["label"], r["annotator"]) for r in rows] == [
        ("p0", "yes 0", 0.97, "ann"),
        ("p1", "no 1", 0.75, "ann"),
        ("p0", "yes 0", 0.6, "bob"),
        ("p1", "no 1", 0.6, "bob"),
    ]
    before = (Path(folder) / "preferences.jsonl").stat().st_mtime_ns
    rounds_people.run(folder, config, **asked)
    assert (Path(folder) / "preferences.jsonl").stat().st_mtime_ns == before


def test_a_round_of_ties_teaches_nothing(asked):
    folder = asked.pop("folder")
    with pytest.raises(WaitingError):
        rounds_people.run(folder, PeopleConfig(), **asked)
    judge(asked["store"], "ann", {f"p{i}": "tie" for i in range(3)})
    with pytest.raises(UserError, match="every pair of this round is a tie"):
        rounds_people.run(folder, PeopleConfig(), **asked)
    half = PeopleConfig(ties="half")
    assert rounds_people.run(folder, half, **asked)["pairs"] == 3
    assert {row["label"] for row in read(Path(folder) / "preferences.jsonl")} == {0.5}


def test_the_command_waits_with_an_exit_code_of_its_own_and_goes_on(tmp_path, capfd):
    folder = rounds_plans.copy(tmp_path, "round-1", "round-2")
    (folder / "rounds" / "config.yaml").unlink()
    people = (*COMMAND, "labeller=people", "rounds=1", "pairs=14")
    assert micro.command(folder, *people) == 5
    said = " ".join(capfd.readouterr().err.split())
    assert "waiting: 0 of the 14 pairs" in said and "error" not in said
    store = str(folder / "rounds" / "labels.sqlite")
    with Store(store) as opened:
        prompts = {str(pair.prompt): 3 for pair in opened.pairs()}
    judge(store, "ann", prompts)
    sampled = (folder / "rounds" / "round-1" / "sample" / "samples.jsonl").stat().st_mtime_ns
    assert micro.command(folder, *people) == 0
    again = (folder / "rounds" / "round-1" / "sample" / "samples.jsonl").stat().st_mtime_ns
    assert again == sampled
    assert (
        json.loads((folder / "rounds" / "rounds.json").read_text())["by_round"][0]["labels"] == 14
    )
