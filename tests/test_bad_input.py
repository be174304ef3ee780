"""What users get wrong: each mistake is one message that names the place, and nothing is left.

Everything goes through the command line, in this process. Exit code 2 is something to put right,
3 a number that is not finite. A full disk and signals are in `test_resume_process.py`.
"""

import gzip
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import micro
import pytest
import safetensors.numpy

from jaxrlhf.metrics import read_metrics

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the finished pipeline, with some files that are wrong."""
    folder = micro.copy(tmp_path_factory.mktemp("bad"))
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    edit_json(clone(folder, "wider") / "config.json", {"hidden_size": 32})
    edit_json(clone(folder, "unknown_field") / "config.json", {"width": 3})
    edit_json(clone(folder, "fewer_words") / "config.json", {"vocab_size": 72})
    cut_vocabulary(folder / "fewer_words", 72)
    edit_json(clone(folder, "deaf", of="reward") / "config.json", {"vocab_size": 72})
    cut_vocabulary(folder / "deaf", 72)
    for name, word in (("other_words", "waiter"), ("no_end", None)):
        model = clone(folder, name, of="reward" if word else "sft")
        text = (model / "tokenizer.json").read_text()
        if word:
            (model / "tokenizer.json").write_text(text.replace(f'"{word}"', '"somebody"'))
        else:
            settings = json.loads((model / "tokenizer_config.json").read_text())
            del settings["eos_token"]
            (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "reward_rules.py").write_text(RULES)
    return folder


def clone(folder: Path, name: str, of: str = "sft") -> Path:
    return Path(shutil.copytree(folder / "run" / of / "model", folder / name))


def edit_json(path: Path, changes: dict) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def cut_vocabulary(model: Path, rows: int) -> None:
    arrays = safetensors.numpy.load_file(model / "model.safetensors")
    cut = {name: x[:rows] if len(x) > rows and x.ndim == 2 else x for name, x in arrays.items()}
    safetensors.numpy.save_file({**arrays, **cut}, model / "model.safetensors")


FILES = {
    "good.jsonl": b'{"text": "the waiter brought a soup ."}\n' * 20,
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n",
    "malformed.jsonl": b'{"text": "a"}\n{"text": "b"\n',
    "list.jsonl": b"[1, 2]\n",
    "column.jsonl": b'{"texts": "a"}\n',
    "type.jsonl": b'{"text": "a soup ."}\n{"text": 5}\n',
    "utf8.jsonl": b'{"text": "a soup ."}\n{"text": "caf\xe9"}\n',
    "gzip.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:-12],
    "no_answer.jsonl": b'{"messages": [{"role": "user", "content": "a soup"}]}\n',
    "no_user.jsonl": b'{"prompt": [], "completion": [{"role": "assistant", "content": "a"}]}\n',
    "long.jsonl": json.dumps({"text": "the waiter " * 60}).encode() + b"\n",
    "prompts.jsonl": b'{"prompt": "the waiter"}\n' * 8 + b'{"prompt": ""}\n',
    "pairs.jsonl": b'{"prompt": "the", "chosen": " cook", "rejected": " cook"}\n',
    "not_a_config.yaml": b"- 1\n",
    "a_file": b"x",
}
RULES = """
def short(prompts, completions, **columns):
    return [float(len(text.split())) for text in completions]

def one_too_few(prompts, completions, **columns):
    return [0.0] * (len(completions) - 1)

def not_a_number(prompts, completions, **columns):
    return [0.0] * (len(completions) - 1) + [float("nan")]
"""

# As in `micro.CONFIG`, so that what does run finds its compiled programs.
SFT = (
    "sft data.train=[good.jsonl] packing=none max_length=40 batch_size=8 max_steps=8 "
    "optimizer.learning_rate=0.01"
)
TUNE = f"{SFT} model_path=run/sft/model"
FROM_SCRATCH = (
    f"{SFT} tokenizer.path=run/data/tokenizer model.d_model=16 model.num_layers=1 "
    "model.num_heads=2 model.max_positions=48"
)
SAMPLE = "sample --config run/sample/config.yaml"
LABEL = "simulate-labels --config run/label/config.yaml"
REWARD = "reward --config run/reward/config.yaml"
PPO = "ppo --config run/ppo/config.yaml"
RULE = f"{PPO} reward_model=null eval_prompts.files=[]"
RLHF = "rlhf --config micro.yaml"


class Case(NamedTuple):
    """A command (output_dir is added) and what its message must say."""

    command: str
    says: tuple[str, ...]


def case(command: str, *says: str) -> Case:
    return Case(command, says)


CASES = {
    # Feedback.
    "no first policy": case("rounds pretrain=null", "pretrain, model_path: give one of the two"),
    "a policy of a round's own": case(
        "rounds ppo.policy=run/sft/model", "ppo.policy: set policy_init once"
    ),
    "nobody to disagree with": case(
        "queries pairs=[run/sample/samples.jsonl] reward_models=[run/reward/model]",
        "reward_models: by = disagreement compares at least two; there is one",
    ),
    "two starts": case(
        f"{REWARD} warm_start=run/reward/model", "model_path, warm_start: give one of the two"
    ),
    "a lapse of ratings": case(f"{REWARD} loss=regression lapse=0.1", "labels lapse, ratings do"),
    # Files and rows.
    "missing file": case(
        f"{TUNE} data.train=[goood.jsonl]", "goood.jsonl: no such file; did you mean good.jsonl?"
    ),
    "no file named": case(f"{TUNE} data.train=[]", "data.train: name at least one file"),
    "unknown kind": case(f"{TUNE} data.train=[a_file]", "a_file: unknown kind of file", ".parquet"),
    "empty file": case(f"{TUNE} data.train=[empty.jsonl]", "empty.jsonl: the file is empty"),
    "blank file": case(f"{TUNE} data.train=[blank.jsonl]", "blank.jsonl: the file has no rows"),
    "malformed JSON": case(
        f"{TUNE} data.train=[malformed.jsonl]", "malformed.jsonl:2: malformed JSON"
    ),
    "not an object": case(f"{TUNE} data.train=[list.jsonl]", "list.jsonl:1: a row must be"),
    "missing column": case(
        f"{TUNE} data.train=[column.jsonl]", "column.jsonl: texts need", "'texts' is near 'text'"
    ),
    "column mapped to none": case(
        f"{TUNE} data.columns={{text: tex}}", "good.jsonl: no column 'tex'; did you mean 'text'?"
    ),
    "wrong type": case(f"{TUNE} data.train=[type.jsonl]", "type.jsonl:2: ", "'text'", "5"),
    "bad UTF-8": case(f"{TUNE} data.train=[utf8.jsonl]", "utf8.jsonl:2: not UTF-8"),
    "bad gzip": case(f"{TUNE} data.train=[gzip.jsonl.gz]", "gzip.jsonl.gz: broken gzip data"),
    "no assistant turn": case(
        f"{TUNE} format=examples data.train=[no_answer.jsonl]",
        "no_answer.jsonl:1: no assistant turn",
    ),
    "no user turn": case(
        f"{TUNE} format=examples data.train=[no_user.jsonl]", "no_user.jsonl:1: ", "no messages"
    ),
    "over-long row": case(
        f"{TUNE} over_long=error data.train=[long.jsonl]",
        "long.jsonl:1: over-long row",
        "121 tokens, where at most 40 fit",
    ),
    "only over-long rows": case(
        f"{TUNE} data.train=[long.jsonl]", "no examples that fit left", "longer than 40 tokens"
    ),
    "empty prompt": case(f"{SAMPLE} prompts.files=[prompts.jsonl]", "prompts.jsonl:9: ", "prompt"),
    "nothing to compare": case(
        f"{REWARD} data.train=[pairs.jsonl]", "no preferences left", "chosen equals rejected"
    ),
    "samples missing": case(f"{LABEL} samples=none.jsonl", "none.jsonl: no such file"),
    "samples without answers": case(
        f"{LABEL} samples=prompts.jsonl", "prompts.jsonl: no column 'responses'"
    ),
    "more test pairs than pairs": case(f"{LABEL} test_pairs=99", "test_pairs = 99", "only"),
    "batch larger than the data": case(
        f"{TUNE} batch_size=64", "batch_size = 64, but there are only 20 rows"
    ),
    # Configs.
    "unknown key": case(f"{PPO} ppo.cliprang=0.1", "unknown field; did you mean 'cliprange'?"),
    "key of another group": case(f"{PPO} learning_rate=1", "did you mean 'optimizer.learning_rate"),
    "out of range": case(f"{PPO} ppo.gamma=1.5", "override", "ppo.gamma = 1.5", "less than or eq"),
    "negative": case(f"{TUNE} optimizer.learning_rate=-1", "optimizer.learning_rate = -1"),
    "wrong choice": case(f"{TUNE} packing=paked", "packing = paked", "did you mean 'packed'?"),
    "text for a number": case(f"{TUNE} batch_size=many", "batch_size = many", "integer"),
    "not a config": case("sft --config not_a_config.yaml", "not_a_config.yaml: must hold"),
    "KL estimator in the wrong place": case(f"{PPO} ppo.kl_estimator=k2", "k2 is for kl_in: loss"),
    "heads that do not divide": case(f"{FROM_SCRATCH} model.num_heads=3", "d_model=16", "multiple"),
    "kv heads that do not divide": case(
        f"{FROM_SCRATCH} model.num_heads=4 model.num_kv_heads=3", "num_kv_heads=3", "divisor"
    ),
    "odd rope dimension": case(f"{FROM_SCRATCH} model.d_model=18 model.num_heads=6", "even"),
    "more warm-up than steps": case(
        f"{TUNE} max_steps=5 optimizer.warmup_steps=9", "warmup_steps = 9", "5"
    ),
    "micro-batches that do not divide": case(
        f"{TUNE} gradient_accumulation_steps=3",
        "batch_size = 8 does not divide by gradient_accumulation_steps = 3; 9 would",
    ),
    "minibatches that do not divide": case(
        f"{PPO} ppo.num_mini_batches=3", "batch_size = 8 does not divide by ppo.num_mini_batches"
    ),
    "micro-batches of minibatches": case(
        f"{PPO} ppo.num_mini_batches=4 ppo.gradient_accumulation_steps=4", "a minibatch = 2"
    ),
    "a zero head has no scale": case(f"{REWARD} zero_head=true", "set normalize_before: false"),
    "packed rows of like length": case(
        f"{REWARD} packing=packed group_by_length=true", "packed rows have no padding"
    ),
    "no model named": case("sample prompts.files=[prompts.jsonl]", "model_path", "needs a value"),
    "no policy named": case("ppo", "policy", "needs a value"),
    "no reward": case(f"{PPO} reward_model=null", "reward_model, reward_function: give one"),
    "two rewards": case(f"{PPO} reward_function=a:b", "reward_model, reward_function: give one"),
    "no reference named": case(f"{REWARD} reference=null", "reference", "needs a value"),
    "unknown world": case(
        f"{RLHF} task.sandbox.world.name=bistr", "world = 'bistr'", "did you mean 'bistro'?"
    ),
    "unknown setting of a world": case(
        f"{LABEL} world.settings={{repeat_penalti: 2}}", "did you mean 'repeat_penalty'?"
    ),
    "no such stage": case(f"{RLHF} stages=[poo]", "stages.0 = poo", "did you mean 'ppo'?"),
    "no stage left": case(f"{RLHF} sft=null stages=[sft]", "stages: nothing to run", "pretrain"),
    "no data for the task": case(
        f"{RLHF} task.kind=sentiment task.sentiment.sst2=nowhere", "nowhere"
    ),
    "unwritable folder": case(f"{TUNE} output_dir=a_file/x", "output_dir = a_file/x: cannot be"),
    "a file where the folder should be": case(f"{RLHF} output_dir=a_file", "output_dir = a_file:"),
    # Models.
    "no model there": case(f"{TUNE} model_path=run/label", "run/label: no model here (config.json"),
    "the folder of a stage": case(
        f"{TUNE} model_path=run/sft", "run/sft: no model here", "did you mean run/sft/model?"
    ),
    "no such folder": case(
        f"{TUNE} model_path=./run/sft/modle", "no such folder; did you mean run/sft/model?"
    ),
    "no such name on the hub": case(
        f"{TUNE} model_path=nobody/nothing", "nobody/nothing: no such folder; and from the Hugging"
    ),
    "a model that is not finished": case(
        f"{TUNE} model_path=run/sft/model_config", "run/sft/model_config: no weights here"
    ),
    "a reward model for a policy": case(
        f"{PPO} policy=run/reward/model", "holds a reward model, a language model is needed"
    ),
    "a policy for a reward model": case(
        f"{PPO} reward_model=run/sft/model", "holds a language model, a reward model is needed"
    ),
    "a model of another shape": case(
        f"{TUNE} model_path=wider",
        "wider: model.embed_tokens.weight has shape",
        "16), config.json says",
        "model.norm.weight has shape (16,), config.json says (32,)",
    ),
    "a model of another version": case(f"{TUNE} model_path=unknown_field", "config.json", "width"),
    "tokens that the model does not know": case(
        f"{TUNE} model_path=fewer_words data.train=[run/data/demonstrations.jsonl] format=examples",
        "the model has 72 rows; resize_vocabulary: true",
    ),
    "a family that has no such model": case(
        f"{FROM_SCRATCH} model.family=gpt2 model.num_kv_heads=1",
        "no family of Hugging Face has this architecture",
        "num_kv_heads",
    ),
    "different tokenizers": case(
        f"{PPO} reward_model=other_words", "policy and reward_model use different tokenizers"
    ),
    "a reward model that lacks words of the policy": case(
        f"{PPO} reward_model=deaf", "reward_model: has 72 vocabulary rows, the policy 80"
    ),
    "a tokenizer without an end": case(f"{TUNE} model_path=no_end", "no end-of-sequence token"),
    "no tokenizer there": case(
        f"{FROM_SCRATCH} tokenizer.path=./tokeniser", "tokeniser: no such tokenizer folder"
    ),
    "a vocabulary too small": case(
        f"{FROM_SCRATCH} tokenizer.path=null tokenizer.vocab_size=100", "needs at least 259"
    ),
    "rows longer than the model": case(
        f"{TUNE} max_length=128", "max_length = 128: the model reads at most 48 tokens"
    ),
    "pairs longer than the model": case(f"{REWARD} max_length=99", "reads at most 48 tokens"),
    "no room for an answer": case(
        f"{PPO} sampling.response_length=46", "prompts: a prompt of 4 tokens leaves no room", "48"
    ),
    "no room for a sample": case(f"{SAMPLE} sampling.response_length=46", "leaves no room"),
    # Sampling and rewards.
    "greedy PPO": case(f"{PPO} sampling.temperature=0", "temperature 0.0: PPO must sample"),
    "top-k PPO": case(f"{PPO} sampling.top_k=5", "top_k 5", "PPO scores the full distribution"),
    "top-p PPO": case(f"{PPO} sampling.top_p=0.9", "top_p 0.9"),
    "min-p PPO": case(f"{PPO} sampling.min_p=0.1", "min_p 0.1"),
    "PPO that forbids the end": case(f"{PPO} sampling.min_new_tokens=2", "min_new_tokens 2"),
    "longer at least than at most": case(
        f"{SAMPLE} sampling.min_new_tokens=9", "min_new_tokens=9 must be between 0 and"
    ),
    "a truncation token of two": case(
        f"{PPO} truncation.token='the waiter'", "truncation.token", "is 2 tokens, must be one"
    ),
    "no such reward module": case(
        f"{RULE} reward_function=nowhere:f", "reward_function", "nowhere"
    ),
    "no such reward function": case(
        f"{RULE} reward_function=reward_rules:shrt", "reward_function", "shrt"
    ),
    "a reward function without a name": case(f"{RULE} reward_function=reward_rules", "reward_f"),
    # Machines.
    "a mesh larger than the machine": case(
        f"{TUNE} mesh.data=16", "mesh (16, 1) needs 16 devices, there are 8"
    ),
    "mesh of nothing": case(f"{TUNE} mesh.data=0", "mesh.data = 0: use -1"),
    "a batch that does not spread": case(
        f"{TUNE} batch_size=6 mesh.data=4", "batch_size = 6 does not divide by", "8 would"
    ),
    "packed minibatches that do not spread": case(
        f"{PPO} packing=packed ppo.num_mini_batches=4 mesh.data=4",
        "batch_size = 8 does not divide by the devices of mesh.data x packed micro-batches = 16",
    ),
    "packed micro-batches that do not spread": case(
        f"{REWARD} packing=packed gradient_accumulation_steps=4 mesh.data=4",
        "batch_size = 8 does not divide by the devices of mesh.data x packed micro-batches = 16",
    ),
    "weights that do not spread": case(f"{TUNE} mesh.tensor=3", "does not divide over 3 devices"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_message_and_leaves_nothing(folder, tmp_path, capfd, name):
    command, says = CASES[name]
    out = tmp_path / "out"
    argv = split(command)
    if not any(word.startswith("output_dir=") for word in argv):
        argv.append(f"output_dir={out}")
    code, err = run(folder, capfd, *argv)
    assert code == 2, err
    assert err.count("error:") == 1 and "Traceback" not in err
    for text in says:
        assert text in err
    left = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if not path.startswith("data/")]


def split(command: str) -> list[str]:
    import shlex

    return shlex.split(command.replace("{", "'{").replace("}", "}'"))


def run(folder: Path, capfd, *argv: str) -> tuple[int, str]:
    capfd.readouterr()
    code = micro.command(folder, *argv)
    return code, " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("rule", "code", "says"),
    [
        ("one_too_few", 2, "a reward must return one score a sequence: shape (8,), got (7,)"),
        ("not_a_number", 3, "the reward of row 7 is nan, not a finite number"),
    ],
)
def test_a_reward_that_returns_nonsense_stops_the_run(
    folder, tmp_path, capfd, monkeypatch, rule, code, says
):
    argv = [*split(RULE), f"reward_function=reward_rules:{rule}", f"output_dir={tmp_path}"]
    elsewhere = [path for path in sys.path if path != str(folder)]
    monkeypatch.setattr(sys, "path", elsewhere)  # the module is found in the working folder
    found, err = run(folder, capfd, *argv)
    assert found == code and says in err and "Traceback" not in err
    assert not (tmp_path / "done.json").exists() and not (tmp_path / "model").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    folder, tmp_path, capfd
):
    """A learning rate of 1e38 gives finite weights after the first step and no finite loss."""
    schedule = ("optimizer.learning_rate=1e38", "optimizer.lr_scheduler_type=constant")
    argv = [*split(TUNE), *schedule, "save_steps=1", f"output_dir={tmp_path}"]
    code, err = run(folder, capfd, *argv)
    assert code == 3 and "Traceback" not in err
    assert "step 2: " in err and "loss is nan" in err and "the checkpoint of step 1 is kept" in err
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert not (tmp_path / "done.json").exists() and not (tmp_path / "model").exists()
    again, err = run(folder, capfd, *argv)  # goes on from there, and fails alike
    assert again == 3 and "step 2: " in err and "the checkpoint of step 1 is kept" in err


def test_another_config_in_a_used_folder_is_refused_and_compared(folder, capfd):
    argv = [*split(REWARD), "optimizer.learning_rate=0.5", "lapse=0.1"]
    code, err = run(folder, capfd, *argv)
    assert code == 2
    assert "run/reward holds a run with another config" in err
    assert "optimizer.learning_rate: 0.01 there, 0.5 now" in err and "lapse: 0.0 there" in err
    assert "max_steps" not in err and "choose another output_dir" in err
    # What changes no number may change.
    assert run(folder, capfd, *split(REWARD), "tensorboard=true", "save_steps=9")[0] == 0


def test_a_field_that_is_younger_than_the_run_counts_as_its_default(folder, capfd):
    path = folder / "run" / "reward" / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("lapse:")]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept))
    assert run(folder, capfd, *split(REWARD))[0] == 0
    code, err = run(folder, capfd, *split(REWARD), "lapse=0.1")
    assert (
        code == 2 and "lapse: Ellipsis there" not in err and "lapse: absent there, 0.1 now" in err
    )


def test_where_nothing_was_saved_a_corrected_config_is_welcome(folder, tmp_path, capfd):
    # Without canaries, which would find the fault before there is a run. A nearly random policy
    # ends two of eight answers by itself, or none, by chance.
    guards = ("guards.off=[canary]", "guards.warn=[eos_rate]")
    argv = [*split(RULE), "save_steps=0", *guards, f"output_dir={tmp_path}"]
    assert run(folder, capfd, *argv, "reward_function=reward_rules:one_too_few")[0] == 2
    assert (tmp_path / "config.yaml").exists()
    assert run(folder, capfd, *argv, "reward_function=reward_rules:short")[0] == 0


def test_a_checkpoint_of_another_shape_lists_what_differs(folder, tmp_path, capfd):
    shutil.copytree(folder / "run" / "sft" / "checkpoints", tmp_path / "checkpoints")
    code, err = run(
        folder, capfd, *split(FROM_SCRATCH), "model.d_model=32", f"output_dir={tmp_path}"
    )
    assert code == 2 and "Traceback" not in err
    assert "checkpoints/8: a checkpoint of another model" in err
    assert "params/final_norm/scale has shape (16,), this model needs (32,)" in err
    assert (tmp_path / "checkpoints" / "8").exists()


def test_changed_data_are_noticed_when_a_run_goes_on(folder, tmp_path, capfd):
    data = tmp_path / "data.jsonl"
    data.write_bytes(FILES["good.jsonl"])
    argv = [*split(TUNE), f"data.train=[{data}]", f"output_dir={tmp_path}/out"]
    assert run(folder, capfd, *argv)[0] == 0
    (tmp_path / "out" / "done.json").unlink()
    data.write_bytes(FILES["good.jsonl"].replace(b"soup", b"stew"))
    code, err = run(folder, capfd, *argv)
    assert code == 2 and "the data have changed" in err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed_is_named(folder, tmp_path, capfd):
    code, err = run(folder, capfd, *split(TUNE), "wandb_project=x", f"output_dir={tmp_path}")
    assert code == 2 and "wandb" in err and "Traceback" not in err


def test_all_mistakes_of_a_config_come_at_once(folder, capfd):
    code, err = run(folder, capfd, "sft", "batch_size=0", "sede=1", "packing=wraped")
    assert code == 2 and "3 mistakes" in err
    for text in ("batch_size = 0", "did you mean 'seed'?", "did you mean 'wrapped'?"):
        assert text in err


def test_the_process_itself_exits_with_that_code_and_message(folder):
    code, out = micro.finish(micro.child(folder, *split(f"{TUNE} data.train=[malformed.jsonl]")))
    assert code == 2
    lines = [line for line in out.splitlines() if "malformed" in line]
    assert lines == [line for line in lines if line.startswith("error: malformed.jsonl:2:")]
    assert "Traceback" not in out


def test_the_good_command_is_good(folder, tmp_path, capfd):
    """So that the cases above fail for their own mistake alone."""
    assert run(folder, capfd, *split(FROM_SCRATCH), f"output_dir={tmp_path}")[0] == 0


def test_where_pad_is_the_end_token_the_end_is_still_learnt(folder, tmp_path, monkeypatch):
    """Masks say what is padding, never the token: a tokenizer without a pad token is no mistake."""
    from jaxrlhf.data.tokenizer import load_tokenizer
    from jaxrlhf.recipes import sft

    model = clone(folder, f"{tmp_path.name}_no_pad")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.chdir(folder)
    tokenizer = load_tokenizer(model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    config = sft.SFTConfig.load(None, split(SFT)[1:])
    found = sft.rows.read(config.data, config.data.train, sft.formats.texts, field="data.train")
    columns = sft.to_arrays(config, tokenizer, found).columns
    ends = columns["tokens"] == tokenizer.eos_token_id
    # "the waiter brought a soup ." is 6 tokens; the 7th ends it and is learnt, 33 are padding.
    assert columns["mask"].sum(axis=1).tolist() == [7] * 20
    assert ends.sum(axis=1).tolist() == [34] * 20
    assert (ends & columns["loss_mask"]).sum(axis=1).tolist() == [1] * 20
