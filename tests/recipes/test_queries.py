"""`jaxrlhf queries`: priorities of pairs, and the labelling page that serves them."""

import json
from pathlib import Path

import micro
import numpy as np
import pytest

from jaxrlhf.data import sources
from jaxrlhf.evals import acquisition
from jaxrlhf.labelling import formats, queue
from jaxrlhf.labelling.store import Store
from jaxrlhf.models import heads
from jaxrlhf.recipes import blocks, queries, saved
from jaxrlhf.recipes.queries import QueriesConfig

SAMPLES = "run/sample/samples.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tiny pipeline, and reward models that are its own turned round, or scaled."""
    folder = micro.copy(tmp_path_factory.mktemp("queries"))
    model, params, words, _ = saved.load_scalar(
        str(folder / "run" / "reward" / "model"), blocks.MeshConfig().build()
    )
    for name, gain in (("same", 1.0), ("contrary", -1.0), ("twice", 2.0)):
        saved.save_scalar(folder / name, model, heads.affine(params, gain, 0.0), words)
    return folder


@pytest.fixture
def ask(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)

    def ask(*overrides: str) -> list[dict]:
        fixed = (f"pairs=[{SAMPLES}]", f"output_dir={tmp_path}", "max_length=40")
        queries.run(QueriesConfig.load(None, (*fixed, *overrides)))
        return [dict(row) for row in sources.load_rows(str(tmp_path / "pairs.jsonl"))]

    return ask


def test_the_pairs_about_which_members_differ_come_first(ask):
    rows = ask("reward_models=[same, contrary]")
    found = [row["priority"] for row in rows]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] >= 0
    pairs = {pair.pair_id: pair for pair in formats.read([SAMPLES]).pairs}
    assert {row["pair_id"] for row in rows} == set(pairs)
    settings = QueriesConfig(max_length=40)
    asked = [pairs[row["pair_id"]] for row in rows]
    gaps = queries.gaps_of(settings, "same", asked)
    assert found == pytest.approx(acquisition.disagreement([gaps, -gaps]))
    # Two members that say the opposite: the larger the gap, the more they differ.
    assert np.abs(gaps).argmax() == 0


def test_members_that_agree_have_nothing_to_ask(ask):
    rows = ask("reward_models=[same, same]", "by=information")
    assert all(row["priority"] == pytest.approx(0, abs=1e-12) for row in rows)


def test_gaps_are_in_the_nats_of_the_training(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pairs = formats.read([SAMPLES]).pairs
    settings = QueriesConfig(max_length=40)
    plain, twice = (queries.gaps_of(settings, name, pairs) for name in ("same", "twice"))
    assert twice == pytest.approx(2 * plain, rel=1e-4, abs=1e-5)
    unit = json.loads(Path("run/reward/done.json").read_text())["nats_per_score"]
    trained = queries.gaps_of(settings, "run/reward/model", pairs)
    assert unit != 1 and trained == pytest.approx(unit * plain, rel=1e-4, abs=1e-5)


def test_the_labelling_page_serves_them_in_that_order(ask, tmp_path):
    rows = ask("reward_models=[same, contrary]")
    with Store(tmp_path / "labels.sqlite") as store:
        store.add(formats.read([str(tmp_path / "pairs.jsonl")]).pairs)
        queue.arrange(store, "priority")
        waiting = queue.Queue(store)
        store.register("ann")
        shown = waiting.next("ann")
    assert shown and shown.pair_id == rows[0]["pair_id"]


def test_random_needs_no_model_and_follows_the_seed(ask):
    orders = [[row["pair_id"] for row in ask("by=random", f"seed={n}")] for n in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("pairs=[]",), "pairs: name at least one file"),
        ((), "reward_models: by = disagreement compares at least two; there are none"),
        (("reward_models=[same]",), "there is one"),
        (("reward_models=[same, run/reward]",), "did you mean run/reward/model"),
        (("reward_models=[same, same]", "max_length=6"), "over-long row"),
        (("by=disagrement",), "'disagreement', 'information'"),
    ],
)
def test_mistakes_are_one_message(folder, capfd, monkeypatch, overrides, says):
    fixed = (f"pairs=[{SAMPLES}]", "max_length=40")
    assert micro.command(folder, "queries", *fixed, *overrides) == 2
    assert says in " ".join(capfd.readouterr().err.split())
