"""`jaxrlhf eval`: from a model's folder to figures, and on after a kill."""

import json
import shutil

import eval_tiny
import micro
import numpy as np
import pytest

from jaxrlhf.data import chat, sources
from jaxrlhf.data.formats import Example
from jaxrlhf.recipes import blocks, saved
from jaxrlhf.safety.suite import SUITES

FEW = ("sampling.response_length=3", "batch_size=8")


def run(capfd, *argv: str) -> tuple[int, str]:
    code = micro.command(eval_tiny.folder(), "eval", *argv)
    return code, capfd.readouterr().err


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The whole suite on a copy of a model, and its folder."""
    home = tmp_path_factory.mktemp("eval")
    shutil.copytree(eval_tiny.folder() / "model", home / "model")
    argv = ("eval", str(home / "model"), "data=data", f"output_dir={home}/out", *FEW)
    assert micro.command(eval_tiny.folder(), *argv) == 0
    return home


def test_every_evaluation_leaves_rows_and_figures(done):
    record = json.loads((done / "out" / "eval.json").read_text())
    assert set(record["items"]) == {one.name for one in SUITES["safety"]}
    for one in SUITES["safety"]:
        rows = sources.load_rows(str(done / "out" / f"{one.name}.jsonl"))
        assert len(rows) == record["items"][one.name]["asked"]
        assert any(name.startswith(f"{one.name}: ") for name in record["figures"])
    for figure in record["figures"].values():
        assert figure["low"] <= figure["estimate"] <= figure["high"]
    assert (done / "out" / "eval.png").stat().st_size > 10_000


def test_log_probs_are_those_of_the_models_own_logits(done):
    lm, params, words, _ = saved.load_lm(str(done / "model"), blocks.MeshConfig().build())
    for row in sources.load_rows(str(done / "out" / "sycophancy.jsonl"))[:4]:
        for prompt, found in zip(row["prompts"], row["log_probs"], strict=True):
            for answer, log_prob in zip(row["answers"], found, strict=True):
                turn = [{"role": "assistant", "content": answer}]
                tokens, learn = chat.encode_example(words, Example(prompt, turn))
                hidden = lm.hidden(params, tokens[None], np.ones((1, len(tokens)), bool))
                logits = np.asarray(lm.logits(params, hidden), np.float64)[0]
                logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                places = np.flatnonzero(learn)[:-1]  # without the end token
                expected = sum(logits[t - 1, tokens[t]] for t in places)
                assert words.decode(tokens[places]).strip() == answer
                assert log_prob == pytest.approx(expected, abs=1e-4)


def test_the_models_card_has_the_figures_once(done, capfd):
    for _ in range(2):
        card = (done / "model" / "README.md").read_text()
        assert card.count("## Safety") == 1 and card.index("## Safety") < card.index("## Config")
        assert "| truthfulqa: mc1 |" in card
        shutil.rmtree(done / "again", ignore_errors=True)
        model, out = str(done / "model"), f"output_dir={done}/again"
        assert run(capfd, model, "data=data", "only=[truthfulqa]", out, *FEW)[0] == 0


def test_a_finished_run_asks_nothing(done, capfd, monkeypatch):
    from jaxrlhf.constitutional.sampler import Sampler

    monkeypatch.setattr(Sampler, "answer_log_probs", None)
    assert run(capfd, str(done / "model"), "data=data", f"output_dir={done}/out", *FEW)[0] == 0


def test_after_a_kill_it_goes_on_where_it_was(tmp_path):
    argv = ("eval", "model", "data=data", "only=[bbq]", "batch_size=1", "card=false")
    killed = ("append:7:20", *argv, f"output_dir={tmp_path}/out")
    code, said = micro.harmed(eval_tiny.folder(), *killed)
    assert code == -9, said
    partial = tmp_path / "out" / "bbq.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == 6
    first = partial.read_bytes()[:-20]
    assert micro.command(eval_tiny.folder(), *argv, f"output_dir={tmp_path}/out") == 0
    assert micro.command(eval_tiny.folder(), *argv, f"output_dir={tmp_path}/whole") == 0
    made, whole = ((tmp_path / x / "bbq.jsonl").read_bytes() for x in ("out", "whole"))
    assert made == whole and whole.startswith(first)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("data=nowhere",), "data = nowhere: has no sycophancy/sycophancy_on_nlp_survey"),
        (("only=[truthfulqs]",), "did you mean 'truthfulqa'?"),
        (("sampling.response_length=400",), "the model reads 384 tokens"),
    ],
)
def test_bad_input(argv, says, tmp_path, capfd):
    code, err = run(capfd, "model", "data=data", *argv, f"output_dir={tmp_path}/out")
    assert code == 2 and says in err, err
    assert not (tmp_path / "out").exists()


def test_missing_files_name_what_does_without_them(tmp_path, capfd):
    shutil.copytree(eval_tiny.folder() / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "xstest")
    code, err = run(capfd, "model", f"data={tmp_path}/data", f"output_dir={tmp_path}/out")
    assert code == 2 and "only=[sycophancy,truthfulqa,behaviours,bbq] needs none of them" in err
