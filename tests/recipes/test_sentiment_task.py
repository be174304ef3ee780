"""The sentiment task on a handful of made-up reviews in SST-2's format, and on SST-2 itself."""

import gzip
import json
from pathlib import Path

import pytest
from realdata import shared_data

from jaxrlhf.data import formats, sources
from jaxrlhf.errors import DataError
from jaxrlhf.recipes.tasks import SentimentTask, TaskConfig

pytest.importorskip("sklearn")

GOOD, BAD = ("superb", "moving", "clever"), ("dreadful", "boring", "clumsy")
THINGS = ("plot", "film", "cast", "score", "script", "story")


def review(word: str, thing: str, place: str) -> dict:
    label = int(word in GOOD)
    return {"sentence": f"this {thing} by {place} is {word} .", "label": label}


TRAIN = [review(w, t, p) for w in GOOD + BAD for t in THINGS for p in ("him", "her")]
DEV = [review(w, t, "them") for w in GOOD + BAD for t in THINGS]
PHRASES = [{"sentence": s, "label": 1} for s in ("superb", "a moving film", "is a clever plot ,")]
INNER = [row | {"sentence": row["sentence"][len("this ") : -len(" .")]} for row in TRAIN]
PLAIN = [
    " = A Heading = ",
    "The Earl didn't write, did he? He saw 1 @,@ 200 (old) plays.Then he left.",
    "A <unk> came . It 's gone .",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sst2")
    files = {
        "train_sentences": TRAIN,
        "dev_sentences": DEV,
        "train_phrases": PHRASES + INNER + TRAIN,
    }
    for name, rows in files.items():
        write(folder / f"{name}.jsonl.gz", rows)
    (folder / "plain.txt").write_text("\n".join(PLAIN) + "\n")
    return folder


def write(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make(folder: Path, out: Path, *, seed: int = 0, **settings):
    given = {"texts": (str(folder / "plain.txt"),), "shortest_phrase": 3} | settings
    config = SentimentTask.model_validate({"sst2": str(folder)} | given)
    return TaskConfig(kind="sentiment", sentiment=config).prepare(out, seed=seed)


def read(files: tuple[str, ...]) -> list[dict]:
    return [dict(row) for file in files for row in sources.load_rows(file)]


@pytest.fixture(scope="module")
def task(folder, tmp_path_factory):
    return make(folder, tmp_path_factory.mktemp("task") / "new" / "data")


LABEL = {row["sentence"]: row["label"] for row in TRAIN + DEV + INNER}
IS_DEV = {row["sentence"] for row in DEV}


def test_a_positive_sentence_is_preferred_over_a_negative_one(task):
    rows, test = read(task.preferences), read(task.test_preferences)
    assert all(LABEL[r["chosen"]] == 1 and LABEL[r["rejected"]] == 0 for r in rows + test)
    # 18 of the 36 sentences of DEV are positive, and each stands in 4 pairs.
    assert len(test) == 18 * 4 and {r["chosen"] for r in test} <= IS_DEV
    assert {r["rejected"] for r in test} <= IS_DEV and len({r["rejected"] for r in test}) > 9
    found = formats.preferences(sources.load_rows(task.preferences[0]))
    assert len(found) == len(rows)


def sides(task) -> set[str]:
    return {row[side] for row in read(task.preferences) for side in ("chosen", "rejected")}


def test_phrases_are_paired_where_the_judge_has_not_read_them(folder, task, tmp_path):
    mine = {row["prompt"] + row["completion"] for row in read(task.demonstrations)}
    phrases = sides(task) - mine
    # "superb" is in both halves. Of the inner phrases, each stands in one sentence alone.
    assert phrases and {f"this {phrase} ." for phrase in phrases} <= mine
    good = [row for row in TRAIN if row["label"] == 1 and row["sentence"] in mine]
    assert len(read(task.preferences)) == 2 * len(good)  # each as sentence and as phrase
    assert sides(make(folder, tmp_path, pair_phrases=False)) <= mine
    assert len(read(make(folder, tmp_path, pairs_per_text=3).preferences)) == 6 * len(good)


def test_the_halves_share_no_sentence_and_the_judge_has_seen_one_half_alone(
    folder, tmp_path, monkeypatch
):
    fitted = []
    from jaxrlhf.recipes import tasks

    real = tasks.fit_judge
    monkeypatch.setattr(
        tasks, "fit_judge", lambda texts, labels: (fitted.extend(texts), real(texts, labels))[1]
    )
    task = make(folder, tmp_path)
    shown = {row["prompt"] + row["completion"] for row in read(task.demonstrations)}
    assert not (shown | sides(task)) & set(fitted)
    assert shown | set(fitted) == {row["sentence"] for row in TRAIN}
    assert not IS_DEV & (shown | set(fitted))


def test_openings_are_first_words_and_held_out_ones_are_new(task):
    prompts, test = ([r["prompt"] for r in read(f)] for f in (task.prompts, task.test_prompts))
    assert all(prompt.split()[:1] == ["this"] and len(prompt.split()) == 4 for prompt in prompts)
    assert not set(prompts) & set(test) and len(set(test)) == len(test) == len(THINGS)
    assert all(prompt.endswith("by them") for prompt in test)
    for row in read(task.demonstrations):
        assert row["completion"].startswith(" is ") and len(row["prompt"].split()) == 4


def test_a_test_opening_that_also_begins_a_training_sentence_is_left_out(folder, tmp_path):
    # Three words, "this plot by", begin sentences of both splits: nothing could be held out.
    with pytest.raises(DataError, match=r"leaves no test_prompts \(opening_words = 3\)"):
        make(folder, tmp_path, opening_words=3)


def test_a_sentence_with_fewer_than_two_words_left_has_no_opening(folder, tmp_path):
    # "this plot by him is superb ." has 7 words: after 5 "superb ." is left, after 6 one word.
    # "this plot by them is" is still new.
    assert read(make(folder, tmp_path / "5", opening_words=5).prompts)
    with pytest.raises(DataError, match="leaves no demonstrations"):
        make(folder, tmp_path / "6", opening_words=6)


def test_plain_text_is_made_to_look_like_the_reviews(task):
    texts = [row["text"] for row in read(task.corpus)]
    assert [text for text in texts if " by " not in text] == [
        "a moving film",  # "superb" is shorter than shortest_phrase
        "is a clever plot ,",
        "the earl did n't write , did he ?",
        "he saw 1,200 ( old ) plays .",
        "then he left .",
        "it 's gone .",
    ]
    assert len(texts) == 6 + len(INNER) + len(TRAIN)


def test_files_follow_from_data_and_seed(folder, task, tmp_path):
    again, other = make(folder, tmp_path / "a"), make(folder, tmp_path / "b", seed=1)
    for name in ("corpus", "prompts", "preferences", "test_preferences"):
        assert read(getattr(again, name)) == read(getattr(task, name))
    assert read(other.preferences) != read(task.preferences)
    assert read(other.prompts) == read(task.prompts)  # the halves are the data's, not the seed's


def test_the_judge_judges(task):
    good, bad = task.judge(["this plot by", "this plot by"], [" us is superb .", " us is boring ."])
    assert good["gold"] > 0.7 > 0.3 > bad["gold"]


def test_a_malformed_row_is_named(folder, tmp_path):
    for name in ("train_sentences", "dev_sentences"):
        write(tmp_path / f"{name}.jsonl.gz", TRAIN)
    write(tmp_path / "train_phrases.jsonl.gz", [{"sentence": "fine", "label": 2}])
    with pytest.raises(DataError, match=r"train_phrases.jsonl.gz:1: .*`label` of 0 or 1.*2"):
        make(tmp_path, tmp_path / "out", texts=())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        SentimentTask(sst2=str(tmp_path / "nowhere")).prepare(tmp_path, seed=0)


def test_real_sst2_has_the_expected_sizes_and_a_fair_judge(tmp_path):
    sst2 = shared_data("sst2")
    task = SentimentTask(sst2=str(sst2), shortest_phrase=30).prepare(tmp_path, seed=0)
    # Counted apart from this code: 6920 sentences in halves, 872 held out of which 444 positive.
    assert len(read(task.test_preferences)) == 444 * 4
    assert 3100 < len(read(task.demonstrations)) < 3700
    assert 800 < len(read(task.test_prompts)) <= 872
    dev = sources.load_rows(sst2 / "dev_sentences.jsonl.gz")
    texts, labels = [row["sentence"] for row in dev], [row["label"] for row in dev]
    assert task.judge.accuracy(texts, labels) == pytest.approx(0.77, abs=0.03)
