"""Weak-to-strong experiments: which cells, what each is told, what the tables say, what is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import w2s_stages
from w2s_stages import SMALL, results

from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import ConfigError, DataError, UserError
from jaxrlhf.evals import weak_to_strong as evals
from jaxrlhf.recipes import supervisors as supervisors_module
from jaxrlhf.recipes import w2s
from jaxrlhf.recipes.classify import ClassifyConfig
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.sft import SFTConfig
from jaxrlhf.recipes.supervisors import (
    SupervisorConfig,
    Supervisors,
    misled,
    probs,
    write_labels,
)
from jaxrlhf.recipes.w2s_task import FilesTask, Task, W2STaskConfig

RULE = "rule={loss: mended, baseline: naive, min_gain: 0.1, min_passes: 2}"
MAIN = "grids={main: {seeds: [0, 1]}}"


@pytest.fixture
def experiment(tmp_path, unpainted):
    """Run with stages that train nothing: the page, and the configs the stages were given."""

    def run(*overrides: str, broken: str = "nothing", error: BaseException | None = None):
        base = (f"output_dir={tmp_path}/run", *SMALL, *overrides)
        with w2s_stages.stand_ins(broken=broken, error=error) as given:
            summary = w2s.run(w2s.W2SConfig.load(None, base))
        return summary, (tmp_path / "run" / "w2s.md").read_text(), given

    return run


def classified(given) -> list[ClassifyConfig]:
    return [config for config in given if isinstance(config, ClassifyConfig)]


def test_a_cell_learns_from_the_second_half_what_its_supervisor_said_of_it(experiment, tmp_path):
    _, _, given = experiment("grids={main: {losses: [naive]}}")
    ceiling, student = classified(given)
    root = tmp_path / "run" / "seed-0"
    assert ceiling.data.train == (f"{root}/data/second.jsonl",)
    assert student.data.train == (f"{root}/labels/words/second.jsonl",)
    assert ceiling.loss.loss == student.loss.loss == "cross_entropy"
    assert student.model_path == f"{root}/pretrain/student/model"
    assert student.data.test == student.predict == (f"{root}/data/test.jsonl",)
    truth, weak = (
        probs(sources.load_rows(root / part / "test.jsonl")) for part in ("data", "labels/words")
    )
    assert set(np.unique(truth)) == {0, 1} and 0 < weak.min() < weak.max() < 1
    assert 0.55 < evals.correct(weak, truth).mean() < 0.85  # fitted to 400 texts of the first half
    halves = [
        {row["text"] for row in sources.load_rows(root / "data" / f"{name}.jsonl")}
        for name in ("first", "second", "test")
    ]
    assert [len(half) for half in halves] == [400, 20, 400]
    assert not halves[0] & halves[1] and not (halves[0] | halves[1]) & halves[2]


def test_the_ceiling_may_learn_the_first_half_instead(experiment, tmp_path):
    _, page, given = experiment("grids={main: {losses: [naive]}}", "ceiling_half=first")
    assert classified(given)[0].data.train == (f"{tmp_path}/run/seed-0/data/first.jsonl",)
    assert "truth of the first half" in page


def test_a_grid_is_every_combination_and_cells_are_shared(experiment):
    grids = (
        "grids={a: {seeds: [0, 1], losses: [naive]}, "
        "b: {tuning: [full, probe], learning_rates: [1e-3, 1e-4]}}"
    )
    summary, _, given = experiment(grids)
    cells = classified(given)
    # a: 2 seeds; b: 2 losses x 2 ways to tune x 2 rates, of which one is a's: 1e-3 is the default
    assert summary["cells"] == 2 + 8
    students = [c for c in cells if "truth" not in c.output_dir]
    assert len(students) == 2 + 8 - 1
    # a ceiling a seed and a way to train: seed 1, and 2 x 2 of seed 0
    assert len(cells) - len(students) == 1 + 4
    assert {(c.tuning, c.optimizer.learning_rate) for c in students} == {
        (t, r) for t in ("full", "probe") for r in (1e-3, 1e-4)
    }


def test_the_rule_is_judged_seed_by_seed(experiment, tmp_path):
    """The stand-ins are right on .8 and .9, the ceiling on .97: about (.9 − .8) / (.97 − .65)."""
    summary, page, _ = experiment(MAIN, RULE)
    assert summary == {"cells": 4, "failed": 0, "verdict": "PASS"}
    assert "in 2 seeds. **PASS.**" in page
    found = {(one["seed"], one["loss"]): one for one in results(tmp_path / "run")["main"]}
    for seed in (0, 1):
        naive, mended = found[seed, "naive"], found[seed, "mended"]
        expected = (naive["accuracy"] - naive["weak"]) / (naive["ceiling"] - naive["weak"])
        assert naive["recovery"]["value"] == pytest.approx(expected)
        low, high = naive["recovery"]["interval"][1:]
        assert low < expected < high
        gain = mended["recovery"]["value"] - naive["recovery"]["value"]
        assert f"| {seed} | {naive['weak']:.3f} | {naive['ceiling']:.3f} | {expected:.2f}" in page
        assert f"| {gain:.2f} |" in page and gain > 0.1
        assert naive["oracle"] == 0.95  # the best of the stand-ins' three evaluations
        assert naive["stopped"] == 0.7  # where their validation loss was least
    strict = "rule={loss: mended, baseline: naive, min_gain: 0.9, min_passes: 1}"
    assert experiment(MAIN, strict)[0]["verdict"] == "FAIL"


def test_pgr_of_a_small_gap_is_said_to_be_none(experiment, tmp_path):
    """A supervisor as good as the ceiling: no ratio, and nothing like NaN in the tables."""
    overrides = (
        "supervisors={words: {}, good: {kind: model, size: student, loss: mended}}",
        "grids={main: {supervisors: [good], losses: [naive]}}",
    )
    with_truth = w2s_stages.RIGHT | {"mended": 0.99}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(w2s_stages, "RIGHT", with_truth)
        _, page, _ = experiment(*overrides)
    assert "undefined: the teacher is better than the ceiling" in page
    assert "nan" not in page.lower() and "inf" not in page.lower()
    assert results(tmp_path / "run")["main"][0]["recovery"]["value"] is None


def test_a_cell_that_fails_is_reported_and_loses_no_other(experiment, tmp_path):
    summary, page, _ = experiment(MAIN, RULE, broken="mended")
    assert (summary["failed"], summary["cells"], summary["verdict"]) == (2, 2, "FAIL")
    assert "a cell is missing" in page and "is broken" in page and "| naive | 2 |" in page
    # run again, the finished ones are found, and only what was broken is done
    summary, page, given = experiment(MAIN, RULE)
    assert (summary["failed"], summary["cells"], summary["verdict"]) == (0, 4, "PASS")
    assert ["mended" in config.output_dir for config in classified(given)] == [True, True]
    assert "Failed" not in page


def test_a_bug_in_a_cell_is_reported_too(experiment):
    summary, page, _ = experiment(MAIN, broken="seed-1/cells/student-words", error=KeyError("x"))
    assert (summary["failed"], summary["cells"]) == (2, 2)
    assert "seed 1: student-words-mended-full-0.001-pretrained: KeyError: 'x'" in page


def test_what_a_killed_experiment_had_finished_is_not_done_again(experiment, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        experiment(MAIN, broken="seed-1/cells/student-words-mended", error=KeyboardInterrupt())
    assert not (tmp_path / "run" / "w2s.md").exists()
    before = json.loads((tmp_path / "run" / "time.json").read_text())
    summary, _, given = experiment(MAIN)
    assert summary["cells"] == 4
    assert [(c.seed, Path(c.output_dir).name.split("-")[2]) for c in classified(given)] == [
        (1, "mended")
    ]
    after = json.loads((tmp_path / "run" / "time.json").read_text())
    assert all(after[name] > before[name] > 0 for name in ("seconds", "processor_seconds"))


def test_what_is_wrong_with_the_data_is_one_error(experiment, tmp_path):
    path = tmp_path / "rows.jsonl"
    files = ("task.kind=files", f"task.files.train=[{path}]", f"task.files.test=[{path}]")
    for rows, says in (
        ('{"text": "a", "label": 0}\n{"text": "b", "label": 1.5}\n', r"rows\.jsonl:2: .*1\.5"),
        ('{"text": "a", "label": 0}\n{"text": "", "label": 1}\n', r"rows\.jsonl:2: .*text"),
        ('{"text": "a", "label": 1}\n' * 4, r"all 4 rows have class 1 in column 'label'"),
        ('{"text": "a", "lable": 1}\n', r"no column 'label'; did you mean 'lable'"),
    ):
        path.write_text(rows)
        with pytest.raises(DataError, match=says):
            experiment(*files)


def test_grids_may_grow_but_what_cells_depend_on_may_not_change(experiment):
    experiment("grids={main: {losses: [naive]}}")
    _, _, given = experiment("grids={main: {}}")
    assert len(classified(given)) == 1
    with pytest.raises(UserError, match="another config"):
        experiment("grids={main: {}}", "finetune.max_length=99")


def test_pictures_and_tables_go_to_the_results(tmp_path):
    sizes = "sizes={a: {}, b: {}}"
    grids = "grids={one: {students: [a]}, two: {students: [a, b]}}"
    base = (f"output_dir={tmp_path}/run", f"results={tmp_path}/docs", *SMALL, sizes, grids)
    with w2s_stages.stand_ins():
        w2s.run(w2s.W2SConfig.load(None, base))
    made = {path.name: path.read_bytes() for path in (tmp_path / "docs" / "w2s").iterdir()}
    assert all(picture.startswith(b"\x89PNG") for picture in made.values())
    assert made.keys() == {
        "one_curves.png",
        "one_errors.png",
        "two_accuracy_by_student.png",
        "two_agreement_by_student.png",
        "two_pgr_by_student.png",
        "two_errors.png",
    }
    page = (tmp_path / "docs" / "w2s.md").read_text()
    assert all(f"(w2s/{name})" in page for name in made)


def test_a_picture_of_more_lines_than_colours_is_left_out(experiment, tmp_path):
    losses = ", ".join(f"l{i}: {{loss: product, own_power: {i}}}" for i in range(8))
    _, page, _ = experiment(
        f"losses={{naive: {{loss: cross_entropy}}, {losses}}}",
        f"grids={{few: {{losses: [naive, l1]}}, many: {{losses: [{losses_named(8)}]}}}}",
    )
    made = {path.name for path in (tmp_path / "run" / "w2s").iterdir()}
    assert made == {"few_curves.png", "few_errors.png"} and "## many" in page


def test_a_ladder_has_a_picture_a_loss_and_no_column_of_rates_that_sizes_have(experiment, tmp_path):
    """4 supervisors x 2 losses are more lines than colours; the rates differ as the sizes do."""
    _, page, _ = experiment(
        "sizes={a: {learning_rate: 0.25}, b: {}}",
        "supervisors={w: {}, x: {draw: 1}, y: {draw: 2}, z: {draw: 3}}",
        "grids={all: {supervisors: [w, x, y, z], students: [a, b]}}",
    )
    made = {path.name for path in (tmp_path / "run" / "w2s").iterdir()}
    assert made == {"all_errors.png"} | {
        f"all_{what}_by_student_{loss}.png"
        for what in ("accuracy", "agreement", "pgr")
        for loss in ("naive", "mended")
    }
    assert "| supervisor | student | loss | seeds |" in page
    rates = "grids={all: {students: [a, b], supervisors: [w], learning_rates: [0.5, 0.25]}}"
    sizes = ("sizes={a: {}, b: {}}", "supervisors={w: {}}", f"output_dir={tmp_path}/other")
    with w2s_stages.stand_ins():
        w2s.run(w2s.W2SConfig.load(None, (*SMALL, *sizes, rates)))
    other = (tmp_path / "other" / "w2s.md").read_text()
    assert "| student | learning_rate | loss | seeds |" in other


def losses_named(count: int) -> str:
    return ", ".join(f"l{i}" for i in range(count))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("grids={main: {students: [studnt]}}", r"'studnt'.*did you mean 'student'"),
        ("grids={main: {supervisors: [word]}}", r"'word'.*did you mean 'words'"),
        ("grids={main: {losses: [mend]}}", r"'mend'"),
        ("grids={main: {start: [adapted]}}", "needs a block `adapt`"),
        ("supervisors={words: {kind: model}}", "size: a supervisor of kind model needs it"),
        ("supervisors={words: {kind: mean, of: [others]}}", "'others'"),
        ("rule={grid: other}", "'other'"),
        ("grids={main: {seedz: [1]}}", r"grids\.main\.seedz .*did you mean 'seeds'"),
        ("grids={main: {losses: []}}", r"grids\.main\.losses = .*at least 1 item"),
        ("supervisors={words: {kind: flips, of: [words]}}", "words of words: a circle"),
        ("supervisors={truth: {}, words: {}}", "supervisors.truth: the name of what is never"),
        ("sizes={student: {}, a/b: {}}", "a/b.*match pattern"),
        ("task={kind: files, files: {classes: 3}}", "losses.mended: 3 classes"),
        ("finetune.loss.loss=product", "finetune.loss: the experiment says it; set losses"),
        ("improve=main", "improve: a task of sandbox has no policy"),
        ("improve=mian", "improve: grid .*'mian'.*did you mean 'main'"),
        ("task.answers.rlhf.seed=3", r"task\.answers\.rlhf\.seed: .*set grids\.\*\.seeds"),
        ("task={kind: answers, answers: {rlhf: {task: {kind: files}}}}", "only a sandbox has"),
        ("pretrain.seed=3", r"pretrain.seed: .*set grids\.\*\.seeds"),
    ],
)
def test_a_name_that_does_not_exist_is_named(override, says):
    with pytest.raises(ConfigError, match=says):
        w2s.W2SConfig.load(None, [override])


def test_all_seeds_may_start_from_the_models_of_one(experiment, tmp_path):
    _, _, given = experiment(MAIN, "pretrain_seed=1")
    trained = [config for config in given if isinstance(config, SFTConfig)]
    folder = f"{tmp_path}/run/seed-1"
    assert {(c.seed, c.output_dir) for c in trained} == {(1, f"{folder}/pretrain/student")}
    assert {c.data.train for c in trained} == {(f"{folder}/data/corpus.jsonl",)}
    cells = classified(given)
    assert {c.model_path for c in cells} == {f"{folder}/pretrain/student/model"}
    assert {c.seed for c in cells} == {0, 1}  # their own halves, order and heads


def test_a_size_has_its_own_rate_as_a_teacher_and_as_a_student(experiment):
    _, _, given = experiment(
        "sizes={small: {learning_rate: 0.25}, large: {}}",
        "supervisors={small: {kind: model, size: small}}",
        "grids={main: {supervisors: [small], students: [small, large], losses: [naive]}}",
    )
    rates = {Path(c.output_dir).name: c.optimizer.learning_rate for c in classified(given)}
    assert rates == {
        "small": 0.25,
        "small-truth-naive-full-0.25-pretrained": 0.25,
        "small-small-naive-full-0.25-pretrained": 0.25,
        "large-truth-naive-full-0.001-pretrained": 0.001,
        "large-small-naive-full-0.001-pretrained": 0.001,
    }


ANSWERS = (
    "task.kind=answers",
    "sizes={tiny: {}, strong: {}}",
    "supervisors={tiny: {kind: model, size: tiny}}",
    "grids={main: {supervisors: [tiny], students: [strong]}}",
    "improve=main",
)


def test_a_policy_is_improved_with_every_reward_model(experiment, tmp_path):
    _, page, given = experiment(*ANSWERS, "task.answers.rlhf.ppo.chunk_size=9")
    seed = tmp_path / "run" / "seed-0"
    made, *arms = [config for config in given if isinstance(config, RLHFConfig)]
    world = seed / "data" / "rlhf"
    assert made.output_dir == str(world) and "ppo" not in made.stages
    models = [note for note in given if isinstance(note, tuple)]
    rest = "full-0.001-pretrained"
    assert [str(source.relative_to(seed)) for source, _, _ in models] == [
        "labels/tiny/model",
        f"cells/strong-tiny-naive-{rest}/model",
        f"cells/strong-tiny-mended-{rest}/model",
        f"cells/strong-truth-naive-{rest}/model",
    ]
    for (_, where, _), arm in zip(models, arms, strict=True):
        assert arm.stages == ("ppo", "report") and arm.ppo.reward_model == str(where)
        assert arm.ppo.chunk_size == 9 and arm.ppo.policy == str(world / "pretrain" / "model")
        assert arm.ppo.prompts.files == (str(world / "data" / "prompts.jsonl"),)
        assert arm.reward.data.train == (str(seed / "data" / "second.jsonl"),)
    rows = {row["name"]: row for row in results(tmp_path / "run")["ppo"]}
    assert list(rows) == [
        *("weak: tiny", "strong of tiny, naive", "strong of tiny, mended", "ceiling: strong"),
    ]
    assert rows["ceiling: strong"]["gold_gain_sd"] == 2.0
    assert 0.9 < rows["ceiling: strong"]["accuracy"] <= 1
    # the stand-in gains: .9 with the mended student; alone, a seed has its report's interval
    line = next(line for line in page.splitlines() if line.startswith("| strong of tiny, mended"))
    assert "| 0.90 [0.80, 1.00] | 1.25 | 3.00 |" in line
    assert (tmp_path / "run" / "w2s" / "ppo.png").is_file()


def test_an_arm_that_fails_loses_no_other(experiment, tmp_path):
    summary, page, _ = experiment(*ANSWERS, broken="ppo/cells-strong-truth")
    assert summary["failed"] == 1 and "seed 0: PPO, ceiling: strong" in page
    assert len(results(tmp_path / "run")["ppo"]) == 3


# Tasks of files


def prepared(task: FilesTask, folder: Path, *, seed: int) -> Task:
    return W2STaskConfig(kind="files", files=task).prepare(folder, seed=seed)


def test_the_rows_of_files_are_halved_by_the_seed_and_keep_their_columns(tmp_path):
    for name, count in (("train", 20), ("test", 6)):
        rows = [{"txt": f"{name} {i}", "gt": i % 2, "theirs": i / 20} for i in range(count)]
        preferences.write_rows(tmp_path / f"{name}.jsonl", rows)
    task = FilesTask(
        train=(str(tmp_path / "train.jsonl"),),
        test=(str(tmp_path / "test.jsonl"),),
        columns={"text": "txt", "label": "gt"},
        first_share=0.25,
    )
    made = [prepared(task, tmp_path / str(seed), seed=seed) for seed in (0, 0, 1)]
    first, second, test = (
        list(sources.load_rows(file)) for file in (made[0].first, made[0].second, made[0].test)
    )
    assert [len(first), len(second), len(test)] == [5, 15, 6]
    assert {row["text"] for row in first + second} == {f"train {i}" for i in range(20)}
    number = int(first[0]["text"].split()[1])
    assert first[0] == {
        "theirs": number / 20,
        "text": f"train {number}",
        "label": [1.0 - number % 2, float(number % 2)],
    }
    assert first != list(sources.load_rows(made[2].first))
    assert made[0].corpus == (str(made[0].first), str(made[0].second))
    # teachers that bring their labels need no first half
    bare = prepared(task.model_copy(update={"first_share": 0.0}), tmp_path / "bare", seed=0)
    assert len(sources.load_rows(bare.second)) == 20 and not bare.first.exists()
    assert bare.corpus == (str(bare.second),)


def test_half_of_the_pairs_are_turned_round(tmp_path):
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    preferences.write_rows(tmp_path / "pairs.jsonl", rows)
    files = (str(tmp_path / "pairs.jsonl"),)
    task = prepared(FilesTask(reads="pairs", train=files, test=files), tmp_path / "task", seed=0)
    found = list(sources.load_rows(task.test))
    assert all(row["label"] == float(row["chosen"].startswith("good")) for row in found)
    assert 70 < sum(row["label"] for row in found) < 130  # 100 and 4 standard deviations


def test_rows_that_are_too_long_are_left_out_before_anybody_labels_them(tmp_path, capsys):
    """4 words: 'p q' and an answer of up to 2; the longer answer counts, whichever it is."""
    answers = (("a", "b c"), ("a b c", "d"), ("d", "a b c"), ("a b", "c d"))
    rows = [{"prompt": "p q", "chosen": a, "rejected": b} for a, b in answers]
    preferences.write_rows(tmp_path / "pairs.jsonl", rows)
    files = (str(tmp_path / "pairs.jsonl"),)
    task = FilesTask(reads="pairs", train=files, test=files, max_words=4)
    made = prepared(task, tmp_path / "task", seed=0)
    kept = [
        set(row["chosen"].split() + row["rejected"].split()) for row in map(dict, rows_of(made))
    ]
    assert kept == [{"a", "b", "c"}, {"a", "b", "c", "d"}]
    assert len(sources.load_rows(made.first)) + len(sources.load_rows(made.second)) == 2
    out = " ".join(capsys.readouterr().err.split())
    assert "task.files.test: 2 of 4 rows left out: more than 4 words" in out
    texts = [{"text": "one two three", "label": 0}, {"text": "one", "label": 1}] * 4
    preferences.write_rows(tmp_path / "texts.jsonl", texts)
    files = (str(tmp_path / "texts.jsonl"),)
    made = prepared(FilesTask(train=files, test=files, max_words=2), tmp_path / "texts", seed=0)
    assert {row["text"] for row in rows_of(made)} == {"one"}


def rows_of(task: Task):
    return list(sources.load_rows(task.test))


# Supervisors


TEXTS = [f"{'good' if i % 2 else 'bad'} {i % 7}" for i in range(40)]


@pytest.fixture
def supervisors(tmp_path):
    """Of rows whose truth is in their first word, and of a column that errs on a fifth of them."""
    rows = [
        {
            "text": text,
            "label": [1.0 - i % 2, float(i % 2)],
            "theirs": 0.9 if (i % 2) ^ (i % 5 == 0) else 0.1,
        }
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "data").mkdir()
    for name in ("first", "second", "test"):
        preferences.write_rows(tmp_path / "data" / f"{name}.jsonl", rows)
    asked = []

    def make(**configs) -> Supervisors:
        made = {name: SupervisorConfig(**config) for name, config in configs.items()}
        task = Task(tmp_path / "data", (), None, "texts")

        def train_model(fit):
            asked.append(fit)
            for file in ("second.jsonl", "test.jsonl"):
                fit.folder.mkdir(parents=True, exist_ok=True)
                (fit.folder / file).write_bytes((tmp_path / "data" / file).read_bytes())
            return fit.folder

        return Supervisors(made, task, tmp_path / "labels", seed=0, train_model=train_model)

    make.asked = asked
    return make


def said(folder: Path, file: str = "test.jsonl") -> np.ndarray:
    return probs(sources.load_rows(folder / file))[:, 1]


THEIRS = {"kind": "column", "column": "theirs"}
TRUTH = np.arange(40) % 2


def test_words_and_columns(supervisors):
    who = supervisors(words={"kind": "words"}, theirs=THEIRS)
    assert ((said(who.labels("words")) > 0.5) == TRUTH).all()
    assert ((said(who.labels("theirs")) > 0.5) != TRUTH).sum() == 8  # 0, 5, ..., 35
    assert said(who.labels("truth")).tolist() == TRUTH.tolist()


def test_a_mean_is_the_mean_of_probabilities(supervisors):
    who = supervisors(words={}, theirs=THEIRS, both={"kind": "mean", "of": ("words", "theirs")})
    expected = (said(who.labels("words")) + said(who.labels("theirs"))) / 2
    np.testing.assert_allclose(said(who.labels("both")), expected)


def test_errors_that_cannot_and_errors_that_can_be_imitated(supervisors):
    """As many as the supervisor's own: random ones anywhere, those of a rule always the same."""
    who = supervisors(
        theirs=THEIRS,
        random={"kind": "flips", "of": ("theirs",)},
        rule={"kind": "rule", "of": ("theirs",)},
    )
    wrong = {}
    for name in ("theirs", "random", "rule"):
        for file in ("second.jsonl", "test.jsonl"):
            wrong[name, file] = (said(who.labels(name), file) > 0.5) != TRUTH
            assert wrong[name, file].sum() == 8, (name, file)
    assert (wrong["random", "test.jsonl"] != wrong["random", "second.jsonl"]).any()
    assert (wrong["rule", "test.jsonl"] == wrong["rule", "second.jsonl"]).all()


def test_a_rule_decides_where_it_is_surest(monkeypatch):
    """Shares of 'a' 1, .75, .5, .25, 0: above, class 1 is said of a 0; below, class 0 of a 1."""
    monkeypatch.setattr(supervisors_module, "unit_hash", lambda what, word: float(word != "a"))
    texts = ["a a a a", "a a a b", "a a b b", "a b b b", "b b b b"]
    answer = np.array([1, 0, 0, 1, 1])
    misled(answer, texts, 3)  # one from above, two from below
    assert answer.tolist() == [1, 1, 0, 0, 0]


def test_a_chain_learns_from_its_last_link_and_answers_for_the_first(supervisors):
    link = {"kind": "model", "size": "small", "loss": "mended"}
    who = supervisors(words={}, one={**link, "of": ("words",)}, two={**link, "of": ("one",)})
    who.labels("two")
    lessons = {(fit.folder.name, str(Path(*fit.train.parts[-2:]))) for fit in supervisors.asked}
    assert lessons == {("one", "words/second.jsonl"), ("two", "one/second.jsonl")}
    assert {fit.loss for fit in supervisors.asked} == {"mended"}
    assert who.root("two") == "words" and who.root("words") == "words"


def test_ensemble_members_learn_from_samples_of_the_first_half(supervisors, tmp_path):
    who = supervisors(**{f"w{i}": {"draw": i} for i in range(3)}, again={"draw": 1})
    one, two, three, again = (said(who.labels(name)) for name in ("w0", "w1", "w2", "again"))
    assert (one != two).any() and (two != three).any() and (two == again).all()
    drawn = sources.load_rows(tmp_path / "labels" / "draw-1.jsonl")
    assert len(drawn) == 40 and len({row["text"] for row in drawn}) < 14


def test_without_a_first_half_only_columns_can_teach(supervisors, tmp_path):
    (tmp_path / "data" / "first.jsonl").unlink()
    who = supervisors(words={}, theirs=THEIRS)
    who.labels("theirs")
    with pytest.raises(ConfigError, match=r"supervisors\.words: .*leaves it no rows"):
        who.labels("words")


def test_a_column_outside_of_0_and_1_names_its_row(supervisors, tmp_path):
    path = tmp_path / "data" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["theirs"] = 1.5
    preferences.write_rows(path, rows)
    with pytest.raises(
        DataError, match=r"test\.jsonl:3: column 'theirs' must be from 0 to 1: 1\.5"
    ):
        supervisors(theirs=THEIRS).labels("theirs")
    with pytest.raises(DataError, match="no column 'other'"):
        supervisors(other={"kind": "column", "column": "other"}).labels("other")


def test_pairs_are_labelled_by_the_words_of_their_answers(tmp_path):
    pytest.importorskip("sklearn")
    rows = [
        {"prompt": "p", "chosen": a, "rejected": b, "label": label}
        for i in range(10)
        for a, b, label in ((f"kind {i}", f"rude {i}", 1.0), (f"rude {i}", f"kind {i}", 0.0))
    ]
    for name in ("first", "second", "test"):
        preferences.write_rows(tmp_path / f"{name}.jsonl", rows)
    task = Task(tmp_path, (), None, "pairs")
    who = Supervisors(
        {"words": SupervisorConfig()},
        task,
        tmp_path / "labels",
        seed=0,
        train_model=None,  # type: ignore[arg-type]
    )
    found = said(who.labels("words"))
    assert (found[::2] > 0.5).all() and (found[1::2] < 0.5).all()
    source = sources.load_rows(tmp_path / "test.jsonl")
    write_labels(tmp_path / "again.jsonl", source, np.array([[0.25, 0.75]] * 20))
    assert sources.load_rows(tmp_path / "again.jsonl")[0]["label"] == 0.75
