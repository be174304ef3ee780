"""`jaxrlhf inspect`, `generate`, `export`: on the tiny pipeline's models and checkpoints."""

import json
import shutil
from pathlib import Path

import jax
import micro
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from jaxrlhf import checkpoint, inference, sharding
from jaxrlhf.data import chat
from jaxrlhf.errors import CheckpointError
from jaxrlhf.recipes import export, generate, saved
from jaxrlhf.sampling import Sampling

MESH = sharding.make_mesh(1, 1)
WEIGHTS = "model.safetensors"


@pytest.fixture
def command(run, capfd):
    """`jaxrlhf argv` in the folder of the pipeline: exit code, stdout, and stderr in one line."""

    def command(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = micro.command(run.parent, *argv)
        out, err = capfd.readouterr()
        return code, out, " ".join(err.split())

    return command


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / WEIGHTS)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# inspect


def test_inspect_says_what_a_policy_is(command):
    code, out, err = command("inspect", "run/ppo/model")
    assert code == 0 and "Traceback" not in err
    text = " ".join(out.split())
    for words in (
        "holds language model family llama",
        "parameters 6,704",  # counted below
        "layers 1 of width 16, MLP 64, 2 heads of 8",
        "reads 48 tokens, rope positions",
        "tokens 80",
        "eos <eos> (2)",
        "chat template none: Human/Assistant dialogue",
        "Memory a device: sft, mesh (1, 1), 32 rows of 128 tokens (more than the model reads)",
        "Memory a device: ppo, mesh (1, 1), 32 rows of 64 + 32 tokens",
        "It would load.",
    ):
        assert words in text, words
    # embedding and head 2·80·16, attention 4·16², MLP 3·16·64, three norms of 16
    assert 2 * 80 * 16 + 4 * 16**2 + 3 * 16 * 64 + 3 * 16 == 6704


def test_inspect_asks_a_recipes_config_and_a_mesh(command):
    code, out, _ = command(
        "inspect",
        "run/reward/model",
        "recipe=reward",
        "config=run/reward/config.yaml",
        "mesh.data=-1",
    )
    text = " ".join(out.split())
    assert code == 0 and "holds reward model, last token" in text
    assert "reward, mesh (8, 1), 8 rows of 40 tokens, float32" in text  # tests have 8 devices
    assert "sft" not in text and "ppo" not in text


def test_inspect_lists_everything_that_would_not_load(command, run):
    broken = shutil.copytree(run / "sft" / "model", run.parent / "broken", dirs_exist_ok=True)
    values = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(values | {"brand_new": 1}))
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-10])
    (broken / "tokenizer.json").unlink()
    code, out, err = command("inspect", "broken")
    assert code == 2 and "broken: 3 problems, above" in err
    for words in ("brand_new = 1", "cut short", "holds none of tokenizer.json"):
        assert words in out


def test_inspect_lists_tensors_without_reading_them(command, run):
    other = shutil.copytree(run / "sft" / "model", run.parent / "other", dirs_exist_ok=True)
    found = arrays(other)
    del found["model.norm.weight"]
    safetensors.numpy.save_file(found | {"extra": np.zeros(1)}, other / WEIGHTS)
    code, out, err = command("inspect", "other", "mesh.tensor=3")
    assert code == 2 and "4 problems" in err  # one for each recipe that would not spread
    assert "model.norm.weight is missing; extra is not part of this model" in out
    assert "does not divide over 3 devices" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("inspect",), "path: this command needs a value here"),
        (("inspect", "run/ppo"), "did you mean run/ppo/model?"),
        (("inspect", "run/ppo/model", "config=x.yaml"), "config: say whose it is"),
        (("inspect", "run/ppo/model", "recipe=ppoo"), "did you mean 'ppo'?"),
        (("export", "run/ppo/model"), "output: this command needs a value here"),
        (("export", "run/ppo/model", "output=run/ppo/model"), "is what is exported"),
        (("export", "run/ppo", "output=x", "step=7"), "no checkpoint 7; there are 6, 8"),
        (("export", "run/ppo/model", "output=x", "step=6"), "is not the folder of a training"),
        (("export", "run/label", "output=x"), "run/label: no model here"),
        (("generate", "run/ppo/model", "prompt=''"), "prompt: is empty"),
        (("generate", "run/ppo/model", "output=a.jsonl"), "each needs the other"),
        (
            ("generate", "run/ppo/model", "prompt=the", "prompts.files=[run/data/prompts.jsonl]"),
            "prompt, prompts.files: give one of the two",
        ),
        (("generate", "run/ppo/model", "prompt=the", "system=x"), "set chat: true"),
        (("generate", "run/reward/model", "prompt=the"), "a language model is needed"),
        (("generate", "run/ppo/model", f"prompt={'the ' * 60}"), "prompt: is 60 tokens long"),
    ],
)
def test_mistakes_of_the_commands(command, argv, says):
    code, _, err = command(*argv)
    assert code == 2 and says in err and "Traceback" not in err


# export


def test_a_finished_stage_is_exported_as_it_stands(command, run):
    for stage in ("ppo", "reward"):
        code, _, _ = command("export", f"run/{stage}", f"output=out/{stage}")
        assert code == 0
        made, whole = run.parent / "out" / stage, run / stage / "model"
        assert equal(arrays(made), arrays(whole))
        for path in whole.iterdir():
            if path.name != WEIGHTS:
                assert (made / path.name).read_text() == path.read_text(), path.name


def test_precision_and_size_of_files_are_chosen(command, run):
    code, _, _ = command(
        "export", "run/sft/model", "output=out/half", "dtype=bfloat16", "max_shard_gb=0.000004"
    )
    folder = run.parent / "out" / "half"
    assert code == 0 and len(list(folder.glob("model-*.safetensors"))) > 2
    found = saved.load_lm(str(folder), MESH)
    whole = saved.load_lm(str(run / "sft" / "model"), MESH)
    half = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), whole.params)
    assert equal_trees(found.params, half)


def equal_trees(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_rows_past_the_tokenizer_can_be_dropped(tmp_path, run):
    lm, params, words, family = saved.load_lm(str(run / "sft" / "model"), MESH)
    vocab = len(words)
    words.add_tokens(["brand-new"])  # so the model lacks one row ...
    saved.save_lm(tmp_path / "more", lm, params, words, family=family)
    grown = saved.load_lm(str(tmp_path / "more"), MESH, resize_vocabulary=True)
    assert grown.lm.config.vocab_size == vocab + 1
    assert saved.load_lm(str(tmp_path / "more"), MESH).lm.config.vocab_size == vocab
    folder = tmp_path / "padded"  # ... and here it has one too many
    plain = saved.load_lm(str(run / "sft" / "model"), MESH).tokenizer
    saved.save_lm(folder, grown.lm, grown.params, plain, family=family)
    export.run(
        export.ExportConfig(path=str(folder), output=str(tmp_path / "out"), drop_padding=True)
    )
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["vocab_size"] == vocab


@pytest.mark.parametrize(("stage", "step"), [("sft", 6), ("ppo", 6), ("reward", 4)])
def test_a_checkpoint_is_exported_without_the_rest_of_its_state(
    command, run, tmp_path, monkeypatch, stage, step
):
    """Compared with the whole checkpoint as orbax reads it."""
    code, _, err = command("export", f"run/{stage}", f"output={tmp_path}/made", f"step={step}")
    assert code == 0 and "Metadata file" not in err
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((run / stage / "checkpoints" / str(step) / "state").absolute())
    wanted = state["params"]["policy"] if stage == "ppo" else state["params"]
    load = saved.load_scalar if stage == "reward" else saved.load_lm
    found = load(str(tmp_path / "made"), MESH)
    assert equal_trees(found.params, wanted)
    assert found.family == "llama" and found.tokenizer.get_vocab()["<eos>"] == 2
    card = (tmp_path / "made" / "README.md").read_text()
    base = "run/pretrain/model" if stage == "sft" else "run/sft/model"
    assert f"Trained from `{base}` by `jaxrlhf {stage}`. Checkpoint {step} of a run" in card
    assert f"| step | {step} |" in card and "batch_size: 8" in card


def test_an_unfinished_stage_gives_its_newest_checkpoint(command, run, tmp_path):
    folder = tmp_path / "ppo"
    shutil.copytree(run / "ppo", folder, ignore=shutil.ignore_patterns("model", "done.json"))
    assert command("export", str(folder), f"output={tmp_path}/made")[0] == 0
    assert equal(arrays(tmp_path / "made"), arrays(run / "ppo" / "model"))


def test_a_damaged_checkpoint_is_one_error(run, tmp_path):
    folder = shutil.copytree(run / "sft", tmp_path / "sft")
    for path in (folder / "checkpoints" / "8" / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="8: cannot be read"):
        export.load(str(folder), 8)
    abstract = {"embed": {"embedding": jax.ShapeDtypeStruct((7, 16), "float32")}}
    with pytest.raises(CheckpointError, match=r"embedding has shape \(80, 16\), this model needs"):
        checkpoint.restore_params(folder / "checkpoints", 6, abstract)


# generate


def answers(command, *argv: str, path: str = "run/ppo/model", length: int = 8) -> str:
    code, out, err = command("generate", path, f"sampling.response_length={length}", *argv)
    assert code == 0, err
    return out


def test_a_prompt_is_answered_as_the_sampler_does(command, run):
    lm, params, words, _ = saved.load_lm(str(run / "ppo" / "model"), MESH)
    tokens = chat.encode_prompt(words, "my")[None]
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=8, temperature=temperature, stop_ids=(2,), pad_id=0)
        keys = jax.random.fold_in(jax.random.key(5), 0)[None]
        made = inference.generate(lm, params, tokens, tokens >= 0, keys, sampling)
        ids = np.asarray(made.response_tokens)[0][np.asarray(made.response_mask)[0]]
        wanted = words.decode(ids, skip_special_tokens=True)
        out = answers(command, "prompt=my", f"sampling.temperature={temperature}", "seed=5")
        assert out.split() == wanted.split() and len(wanted.split()) > 3


def test_a_file_is_answered_as_its_prompts_are_one_by_one(command, run):
    argv = ("prompts.files=[run/data/prompts.jsonl]", "prompts.limit=5", "batch_size=2")
    assert answers(command, *argv, "output=answers.jsonl") == ""
    rows = [json.loads(line) for line in (run.parent / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(set(row) == {"prompt", "response", "complete"} for row in rows)
    first = answers(command, f"prompt={rows[0]['prompt']}")
    assert first.split() == rows[0]["response"].split()


def test_an_answer_is_no_longer_than_there_is_room_for(command):
    prompt = "the waiter " * 20  # 40 of the 48 tokens that the model reads
    out = answers(command, f"prompt={prompt.strip()}", "sampling.stop_at_eos=false", length=100)
    assert 1 <= len(out.split()) <= 8


@pytest.fixture
def model(run):
    config = generate.GenerateConfig(path=str(run / "ppo" / "model"))
    return generate.load(config, str(run / "ppo" / "model"), MESH)


def talk(monkeypatch, model, lines, **fields):
    """A conversation: what the model was asked, and the lines on stdout are left to capfd."""
    asked = []
    encode = chat.encode_prompt

    def encoded(tokenizer, prompt):
        asked.append(prompt)
        return encode(tokenizer, prompt)

    monkeypatch.setattr(chat, "encode_prompt", encoded)
    monkeypatch.setattr(generate, "load", lambda *_: model)
    script = iter(lines)

    def ask(_):
        line = next(script, None)
        if line is None:
            raise EOFError
        if line is KeyboardInterrupt:
            raise line
        return line

    config = generate.GenerateConfig(path="x", **fields)
    return generate.run(config, ask=ask), asked


def contents(messages):
    return [(m["role"], m["content"]) for m in messages]


def test_a_conversation_has_a_history_until_it_is_reset(monkeypatch, model, capfd):
    few = model._replace(sampling=Sampling(max_new_tokens=3, temperature=0, pad_id=0))
    lines = ["the waiter", "", "a soup", "/reset", "the cook", "/quit", "never"]
    result, asked = talk(monkeypatch, few, lines, chat=True)
    assert result == {"answers": 3}
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 3
    assert contents(asked[0]) == [("user", "the waiter")]
    longest = max((a for a in asked if isinstance(a, list)), key=len)
    assert contents(longest) == [
        ("user", "the waiter"),
        ("assistant", said[0].strip()),
        ("user", "a soup"),
    ]
    assert contents(asked[-1]) == [("user", "the cook")]


def test_without_chat_every_line_is_a_text_to_continue(monkeypatch, model, capfd):
    result, asked = talk(monkeypatch, model, ["the waiter", "a soup"], chat=False)
    assert result == {"answers": 2} and asked == ["the waiter", "a soup"]


def test_interruption_at_the_prompt_ends_and_in_an_answer_stops_it(monkeypatch, model, capfd):
    assert talk(monkeypatch, model, [KeyboardInterrupt, "x"])[0] == {"answers": 0}
    drawn = inference.stream

    def interrupted(*args):
        yield from list(drawn(*args))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "stream", interrupted)
    result, asked = talk(monkeypatch, model, ["the waiter", "a soup"], chat=True)
    out, err = capfd.readouterr()
    assert result == {"answers": 2} and err.count("stopped") == 2
    # What was said of the first answer is part of the second question.
    assert contents(asked[-1])[1] == ("assistant", out.splitlines()[0].strip())


def test_the_oldest_turns_are_forgotten_when_the_model_reads_no_more(monkeypatch, model, capfd):
    few = model._replace(sampling=Sampling(max_new_tokens=6, temperature=0, pad_id=0))
    lines = ["the waiter brought a soup"] * 5
    _, asked = talk(monkeypatch, few, lines, chat=True, system="kind")
    err = " ".join(capfd.readouterr().err.split())
    assert "oldest answers are forgotten" in err
    assert all(contents(messages)[0] == ("system", "kind") for messages in asked)
    assert len(contents(asked[-1])) < 10


def test_what_cannot_be_asked_is_said_and_forgotten(monkeypatch, model, capfd):
    result, asked = talk(monkeypatch, model, ["the " * 60, "the waiter"], chat=True)
    out, err = capfd.readouterr()
    assert "more than the model reads" in " ".join(err.split()) and result == {"answers": 2}
    assert contents(asked[-1]) == [("user", "the waiter")] and out.strip()


def test_what_ends_an_answer_elsewhere_ends_it_here(run, tmp_path):
    folder = shutil.copytree(run / "ppo" / "model", tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 9, 10**6, "x"]}))
    config = generate.GenerateConfig(path=str(folder))
    assert generate.load(config, str(folder), MESH).sampling.stop_ids == (2, 9)
    config = generate.GenerateConfig.load(None, ["path=x", "sampling.stop_at_eos=false"])
    assert generate.load(config, str(folder), MESH).sampling.stop_ids == ()


class Bytes:
    """A tokenizer whose tokens are bytes of UTF-8."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_comes_when_its_last_byte_does(model):
    word = "aß漢!".encode()
    shown = list(generate.in_text(model._replace(tokenizer=Bytes()), word))
    assert [text for text in shown if text] == ["a", "ß", "漢", "!"]
    cut = list(generate.in_text(model._replace(tokenizer=Bytes()), word[:2]))
    assert "".join(cut) == "a\ufffd"  # an answer that ends in half a character
