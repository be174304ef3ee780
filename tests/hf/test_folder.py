"""Folders: language and reward models in and out, saves that are killed, and hostile strangers."""

import dataclasses
import json
import logging
import os
import shutil

import hf_tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers
from hf_tiny import equal, params_of

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import folder as folders
from jaxrlhf.hf import staging, vocabulary
from jaxrlhf.hf.families import FAMILIES
from jaxrlhf.models import make_lm, make_scalar_model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tokenizer:
    """What is asked of one."""

    bos_token_id, eos_token_id, pad_token_id = None, 3, 0

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def lm_in(folder, name="llama", seed=0, **options):
    lm = make_lm(hf_tiny.config_of(name))
    params = params_of(lm.config, seed)
    folders.save_lm(folder, lm, params, tokenizer=Tokenizer(), **options)
    return lm, params


def scalar_of(name="llama", *, bias=0.0, final_norm=True, pooling="last", seed=0):
    model = make_scalar_model(hf_tiny.config_of(name), final_norm=final_norm, pooling=pooling)
    body = {k: v for k, v in params_of(model.config, seed).items() if k != "lm_head"}
    kernel = jnp.asarray(np.random.default_rng(seed).normal(size=model.config.d_model), "float32")
    return model, {"lm": body, "head": {"kernel": kernel, "bias": jnp.float32(bias)}}


def config_json(folder):
    return json.loads((folder / "config.json").read_text())


def edit(folder, **fields):
    (folder / "config.json").write_text(json.dumps(config_json(folder) | fields))


# ------------------------------------------------------------------ language models


def test_a_language_model_there_and_back(tmp_path, family):
    lm, params = lm_in(tmp_path, family.name)
    loaded = folders.load_lm(tmp_path)
    assert loaded.lm is lm and loaded.family == family.name
    assert equal(loaded.params, params)


def test_what_others_are_told(tmp_path):
    lm_in(tmp_path, "qwen3", dtype="bfloat16", generation={"eos_token_id": [3, 5], "top_k": 7})
    values = config_json(tmp_path)
    assert values["architectures"] == ["Qwen3ForCausalLM"] and values["model_type"] == "qwen3"
    assert values["dtype"] == values["torch_dtype"] == "bfloat16"
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (None, 3, 0)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is transformers.Qwen3Config and config.head_dim == 8
    generation = {"eos_token_id": [3, 5], "pad_token_id": 0, "top_k": 7}
    assert folders.load_generation(tmp_path) == generation
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("config.json", "generation_config.json", SINGLE, "tokenizer.json")
    ]


def test_without_a_generation_config_the_special_tokens_are_those_of_the_config(tmp_path):
    lm_in(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    edit(tmp_path, eos_token_id=[3, 4])
    assert folders.load_generation(tmp_path) == {"eos_token_id": [3, 4], "pad_token_id": 0}


def test_precision_and_place_are_the_callers(tmp_path):
    lm, params = lm_in(tmp_path)
    mesh = sharding.make_mesh(2, 4)
    found = folders.load_lm(
        tmp_path, mesh=mesh, dtype="bfloat16", param_dtype="bfloat16", remat=True
    )
    assert found.lm.config == dataclasses.replace(lm.config, dtype="bfloat16", remat=True)
    assert jax.tree.map(lambda x: x.sharding, found.params) == sharding.tree_sharding(mesh, params)
    assert equal(found.params, jax.tree.map(lambda x: x.astype("bfloat16"), params))


def test_the_family_is_the_callers_where_several_fit(tmp_path):
    lm, params = lm_in(tmp_path)
    folders.save_lm(tmp_path, lm, params, family="mistral")
    assert folders.load_lm(tmp_path).family == "mistral"
    with pytest.raises(CheckpointError, match="family 'qwen2' cannot express qkv_bias=False"):
        folders.save_lm(tmp_path, lm, params, family="qwen2")
    with pytest.raises(CheckpointError, match="the nearest is 'llama'"):
        folders.save_lm(tmp_path, lm, params, family="lama")
    assert folders.load_lm(tmp_path).family == "mistral"  # untouched by what failed


def test_old_names_of_the_dtype_and_base_architectures(tmp_path):
    lm, _ = lm_in(tmp_path)
    edit(tmp_path, architectures=None)
    assert folders.load_lm(tmp_path).lm is lm
    edit(tmp_path, architectures=["LlamaModel"])
    assert folders.load_lm(tmp_path).lm is lm


def test_a_field_can_be_ignored(tmp_path):
    lm, _ = lm_in(tmp_path)
    edit(tmp_path, brand_new=1)
    with pytest.raises(CheckpointError, match=r"brand_new = 1.*ignore_fields"):
        folders.load_lm(tmp_path)
    assert folders.load_lm(tmp_path, ignore_fields=("brand_new",)).lm is lm


# ------------------------------------------------------------------ reward models


@pytest.mark.parametrize("bias", [0.0, -1.25])
def test_a_reward_model_there_and_back(tmp_path, family, bias):
    model, params = scalar_of(family.name, bias=bias)
    folders.save_scalar(tmp_path, model, params, tokenizer=Tokenizer())
    loaded = folders.load_scalar(tmp_path)
    assert loaded.model is model and loaded.family == family.name
    assert equal(loaded.params, params)


def test_what_others_are_told_of_a_reward_model(tmp_path):
    model, params = scalar_of("gemma3_text", bias=0.5)
    folders.save_scalar(tmp_path, model, params, tokenizer=Tokenizer())
    values = config_json(tmp_path)
    assert values["architectures"] == ["Gemma3TextForSequenceClassification"]
    assert values["id2label"] == {"0": "score"} and values["pad_token_id"] == 0
    assert values["jaxrlhf"] == {"score_bias": 0.5}
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == 1
    arrays = safetensors.numpy.load_file(tmp_path / SINGLE)
    assert np.array_equal(arrays["score.weight"], np.asarray(params["head"]["kernel"])[None])
    assert "lm_head.weight" not in arrays


def test_no_bias_no_object_of_ours(tmp_path):
    folders.save_scalar(tmp_path, *scalar_of())
    assert "jaxrlhf" not in config_json(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"final_norm": False}, {"final_norm": False}),
        ({"pooling": "mean"}, {"pooling": "mean"}),
        ({"final_norm": False, "pooling": "mean"}, {"final_norm": False, "pooling": "mean"}),
    ],
)
def test_scores_that_others_would_compute_wrongly_are_for_us_alone(tmp_path, flags, said):
    """A head before the last norm, and the mean over tokens."""
    model, params = scalar_of(bias=2.0, **flags)
    folders.save_scalar(tmp_path, model, params, tokenizer=Tokenizer())
    loaded = folders.load_scalar(tmp_path)
    assert loaded.model is model
    assert equal(loaded.params, params)
    assert config_json(tmp_path)["jaxrlhf"] == {"score_bias": 2.0, **said}
    assert config_json(tmp_path)["architectures"] == ["JaxrlhfRewardModel"]
    with pytest.raises(ValueError, match="jaxrlhf_llama"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    edit(tmp_path, jaxrlhf={})  # the mark alone is not enough
    with pytest.raises(CheckpointError, match="model_type = 'jaxrlhf_llama'"):
        folders.load_scalar(tmp_path)


def test_where_texts_end_in_the_padding_token_none_is_said_of_a_reward_model(tmp_path):
    """Others would take the end token for padding, and score the token before it."""
    tokenizer = Tokenizer()
    tokenizer.pad_token_id = tokenizer.eos_token_id
    folders.save_scalar(tmp_path / "scalar", *scalar_of(), tokenizer=tokenizer)
    assert config_json(tmp_path / "scalar")["pad_token_id"] is None
    assert config_json(tmp_path / "scalar")["eos_token_id"] == 3
    lm = make_lm(hf_tiny.config_of("llama"))
    folders.save_lm(tmp_path / "lm", lm, params_of(lm.config), tokenizer=tokenizer)
    assert config_json(tmp_path / "lm")["pad_token_id"] == 3


# ------------------------------------------------------------------ cards and descriptions


def test_the_card_is_the_readme(tmp_path):
    lm_in(tmp_path / "lm", card="# ä model\n")
    folders.save_scalar(tmp_path / "scalar", *scalar_of(), card="# a judge\n")
    assert (tmp_path / "lm" / "README.md").read_text("utf-8") == "# ä model\n"
    assert (tmp_path / "scalar" / "README.md").read_text() == "# a judge\n"


def test_a_description_is_a_model_without_weights(tmp_path):
    lm, _ = lm_in(tmp_path / "lm", generation={"eos_token_id": [3, 5]})
    kinds = {"tokenizer": Tokenizer(), "family": "llama"}
    folders.describe_lm(tmp_path / "a", lm, generation={"eos_token_id": [3, 5]}, **kinds)
    folders.save_scalar(tmp_path / "scalar", *scalar_of(pooling="mean"), tokenizer=Tokenizer())
    folders.describe_scalar(tmp_path / "b", scalar_of(pooling="mean")[0], **kinds)
    for whole, described in (("lm", "a"), ("scalar", "b")):
        names = {path.name for path in (tmp_path / whole).iterdir()}
        assert {path.name for path in (tmp_path / described).iterdir()} == names - {SINGLE}
        for name in names - {SINGLE}:
            text = (tmp_path / described / name).read_text()
            assert text == (tmp_path / whole / name).read_text(), name
    with pytest.raises(CheckpointError, match="no weights here"):
        folders.load_lm(tmp_path / "a")


@pytest.mark.parametrize(("name", "head"), [("llama", "lm_head"), ("gpt_neox", "embed_out")])
def test_an_output_head_beside_a_reward_model_is_left_alone(tmp_path, name, head):
    model, params = scalar_of(name)
    folders.save_scalar(tmp_path, model, params)
    arrays = safetensors.numpy.load_file(tmp_path / SINGLE)
    arrays[f"{head}.weight"] = np.zeros((24, model.config.d_model), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / SINGLE)
    assert equal(folders.load_scalar(tmp_path).params, params)


def test_a_reward_model_on_a_mesh(tmp_path):
    model, params = scalar_of(bias=1.5)
    folders.save_scalar(tmp_path, model, params)
    mesh = sharding.make_mesh(2, 4)
    found = folders.load_scalar(tmp_path, mesh=mesh).params
    assert jax.tree.map(lambda x: x.sharding, found) == sharding.tree_sharding(mesh, params)
    tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    run = jax.jit(model.scores)
    np.testing.assert_allclose(run(found, tokens, mask), run(params, tokens, mask), atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "num_labels = 2"),
        ({"id2label": None}, "num_labels = 2"),
        ({"id2label": None, "num_labels": 3}, "num_labels = 3"),
        ({"architectures": ["LlamaForTokenClassification"]}, "of llama, LlamaForCausalLM"),
        ({"architectures": ["MistralForSequenceClassification"]}, "can be read"),
        ({"architectures": []}, "a language model, a reward model is needed"),
        ({"architectures": ["A", "B"]}, "must name one"),
        ({"architectures": "LlamaForCausalLM"}, "must name one"),
        ({"jaxrlhf": {"score_bias": "1"}}, "must be a finite number"),
        ({"jaxrlhf": {"score_bias": float("inf")}}, "must be a finite number"),
        ({"jaxrlhf": {"final_norm": 0}}, "must be true or false"),
        ({"jaxrlhf": {"pooling": "max"}}, "jaxrlhf.pooling = 'max': must be last or mean"),
        ({"jaxrlhf": {"pooling": ["mean"]}}, "jaxrlhf.pooling = ['mean']: must be last or mean"),
        ({"jaxrlhf": {"later": 1}}, "must be an object with final_norm, pooling, score_bias"),
    ],
)
def test_reward_models_that_are_none(tmp_path, fields, says):
    folders.save_scalar(tmp_path, *scalar_of())
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError) as caught:
        folders.load_scalar(tmp_path)
    assert says in str(caught.value)


def test_one_kind_is_not_taken_for_the_other(tmp_path):
    lm_in(tmp_path / "lm")
    folders.save_scalar(tmp_path / "scalar", *scalar_of())
    with pytest.raises(CheckpointError, match="holds a language model, a reward model is needed"):
        folders.load_scalar(tmp_path / "lm")
    with pytest.raises(CheckpointError, match="holds a reward model, a language model is needed"):
        folders.load_lm(tmp_path / "scalar")


# ------------------------------------------------------------------ vocabulary


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_new_tokens_are_the_mean_of_the_old(name):
    config = hf_tiny.config_of(name)
    params = params_of(config)
    wider, grown = vocabulary.resize(config, params, 27)
    assert wider == dataclasses.replace(config, vocab_size=27)
    table = grown["embed"]["embedding"]
    assert equal(table[:24], params["embed"]["embedding"])
    mean = np.asarray(params["embed"]["embedding"], np.float64).mean(axis=0)
    np.testing.assert_allclose(table[24:], np.stack([mean] * 3), atol=1e-6)
    if name == "llama":
        kernel = np.asarray(params["lm_head"]["kernel"], np.float64)
        assert grown["lm_head"]["kernel"].shape == (16, 27)
        np.testing.assert_allclose(grown["lm_head"]["kernel"][:, 25], kernel.mean(1), atol=1e-6)
    back = vocabulary.resize(wider, grown, 24)
    assert back[0] == config and equal(back[1], params)


def test_resizing_in_bfloat16_means_in_float32():
    # 256 rows of 1 and one of 3: the mean, 1.0078, is lost where sums have 8 bits.
    table = jnp.ones((257, 1), jnp.bfloat16).at[0].set(3)
    mean = vocabulary._resized(table, 258, axis=0)[-1, 0]
    assert mean.dtype == jnp.bfloat16 and float(mean) == 1.0078125


def test_padding_rows_of_ours_are_left_out_of_what_we_write(tmp_path):
    lm, params = lm_in(tmp_path, vocab_size=21)
    loaded = folders.load_lm(tmp_path)
    assert config_json(tmp_path)["vocab_size"] == loaded.lm.config.vocab_size == 21
    assert equal(loaded.params, vocabulary.resize(lm.config, params, 21)[1])
    model, params = scalar_of()
    folders.save_scalar(tmp_path, model, params, vocab_size=21)
    assert folders.load_scalar(tmp_path).params["lm"]["embed"]["embedding"].shape == (21, 16)


# ------------------------------------------------------------------ saves that fail


def test_a_save_replaces_every_file_of_the_old_model(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    lm_in(tmp_path, "gpt2", max_shard_size=3000)
    assert (tmp_path / INDEX).exists()
    lm, params = lm_in(tmp_path, "llama", seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("config.json", "generation_config.json", SINGLE, "notes.txt", "tokenizer.json")
    ]
    assert equal(folders.load_lm(tmp_path).params, params)
    lm_in(tmp_path, "llama", seed=2, max_shard_size=3000)
    assert not (tmp_path / SINGLE).exists()
    assert equal(folders.load_lm(tmp_path).params, params_of(lm.config, 2))


class Killed(BaseException):
    """As near to SIGKILL as a test gets: nothing after it runs."""


@pytest.mark.parametrize("shard", [5 * 10**9, 3000])
def test_killed_at_any_moment_a_folder_is_old_or_new_or_none(tmp_path, monkeypatch, shard):
    """Every write, rename and removal in turn is the last thing that happens."""
    old, new = lm_in(tmp_path / "old", max_shard_size=3000)[1], None
    outcomes = []
    for moment in range(1000):
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "old", folder)
        left = [moment]

        def countdown(function, left=left):
            def run(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return function(*args, **kwargs)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(staging.Path, "replace", countdown(staging.Path.replace))
            patch.setattr(staging.Path, "unlink", countdown(staging.Path.unlink))
            patch.setattr(staging.shutil, "rmtree", lambda *args, **kwargs: None)
            try:
                new = lm_in(folder, seed=1, max_shard_size=shard)[1]
            except Killed:
                pass
            else:
                break
        try:
            found = folders.load_lm(folder).params
        except CheckpointError as error:
            assert "no weights here" in str(error) or "neither" in str(error)
            outcomes.append("none")
        else:
            assert equal(found, old)
            outcomes.append("old")
        assert equal(lm_in(folder, seed=3)[1], folders.load_lm(folder).params)
        assert not (folder / ".saving").exists()
    assert outcomes == sorted(outcomes, reverse=True) and set(outcomes) == {"old", "none"}
    assert equal(folders.load_lm(folder).params, new)


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    _, params = lm_in(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left"):
        lm_in(tmp_path, seed=1)
    assert equal(folders.load_lm(tmp_path).params, params)
    assert not (tmp_path / ".saving").exists()


def test_a_tokenizer_that_cannot_be_saved(tmp_path, monkeypatch):
    def broken(*args):
        raise Exception("the library's own")

    monkeypatch.setattr(Tokenizer, "save_pretrained", broken)
    with pytest.raises(CheckpointError, match="tokenizer could not be written"):
        lm_in(tmp_path)


# ------------------------------------------------------------------ hostile folders


def test_configs_that_are_none(tmp_path):
    lm_in(tmp_path)
    good = (tmp_path / "config.json").read_text()
    for text, says in (
        ("[]", "must be a JSON object, not a list"),
        ("", "is not valid JSON"),
        ('{"a":' * 30_000, "nested too deeply"),
        (good.replace('"llama"', '"llamma"'), "the nearest is 'llama'"),
        (good.replace('"llama"', '["llama"]'), "model_type = \\['llama'\\]"),
        (good.replace('"model_type"', '"x"'), "model_type = None"),
        (good.replace('"gemma3_text"', '"gemma3"').replace('"llama"', '"gemma3"'), "gemma3_text"),
        (good.replace('"hidden_size": 16', '"hidden_size": -16'), "hidden_size = -16: must be"),
        (good.replace('"vocab_size": 24', f'"vocab_size": {10**18}'), "vocab_size = 10000000000"),
        # 2 ** 28 rows are no error as such: the file does not have them.
        (good.replace('"vocab_size": 24', '"vocab_size": 268435456'), r"says \(268435456, 16\)"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=says):
            folders.load_lm(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * (65 * 2**20))
    with pytest.raises(CheckpointError, match="larger than 64 MiB"):
        folders.load_lm(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        folders.load_lm(tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b""}, "pickles only .pytorch_model.bin.*save_pretrained"),
        ({"pytorch_model-00001-of-00002.bin": b"x"}, "pickles only"),
        ({"consolidated.00.pth": b"x"}, "pickles only"),
        ({"adapter_config.json": b"{}"}, "a LoRA adapter alone"),
        ({"tf_model.h5": b"x"}, "tf_model.h5 cannot be read"),
        ({"other.safetensors": b"x"}, "has other.safetensors, but neither"),
        ({}, "no weights here"),
    ],
)
def test_folders_without_safetensors(tmp_path, files, says):
    lm_in(tmp_path)
    (tmp_path / SINGLE).unlink()
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=says):
        folders.load_lm(tmp_path)


def test_code_beside_a_model_is_never_run(tmp_path, caplog):
    lm, _ = lm_in(tmp_path)
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    with caplog.at_level(logging.WARNING):
        assert folders.load_lm(tmp_path).lm is lm
    assert "auto_map names code" in caplog.text and not (tmp_path / "ran").exists()
    edit(tmp_path, model_type="evil")
    with pytest.raises(CheckpointError, match="model_type = 'evil': must be one of gpt2"):
        folders.load_lm(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    """A model in many files, and a secret beside its folder."""
    secret = tmp_path / "secret.safetensors"
    safetensors.numpy.save_file({"model.norm.weight": np.ones(16, np.float32)}, secret)
    folder = tmp_path / "model"
    lm_in(folder, max_shard_size=4000)
    return folder


def reindex(folder, change):
    path = folder / INDEX
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def files_of(folder):
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "{tmp}/secret.safetensors",
        "sub/../../secret.safetensors",
        "./model-00001-of-00002.safetensors",
        "..",
        "",
        "..\\\\secret.safetensors",
        "a\0b",
        "link.safetensors",
        "chain.safetensors",
        "folder-link",
    ],
)
def test_nothing_outside_the_folder_is_read(sharded, tmp_path, monkeypatch, name):
    (sharded / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (sharded / "chain.safetensors").symlink_to(sharded / "link.safetensors")
    (sharded / "folder-link").symlink_to(tmp_path)
    opened = []
    real = os.open, open

    def watch(function):
        def run(path, *args, **kwargs):
            opened.append(os.path.realpath(path) if isinstance(path, str | os.PathLike) else "")
            return function(path, *args, **kwargs)

        return run

    name = name.replace("{tmp}", str(tmp_path))
    reindex(sharded, lambda values: values["weight_map"].update({"model.norm.weight": name}))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watch(real[0]))
        patch.setattr("builtins.open", watch(real[1]))
        with pytest.raises(CheckpointError, match=r"plain name|out of the folder") as caught:
            folders.load_lm(sharded)
    assert INDEX in str(caught.value)
    assert opened and str(tmp_path / "secret.safetensors") not in opened


@pytest.mark.parametrize("name", [SINGLE, "config.json", INDEX, "generation_config.json"])
def test_no_link_leads_out_of_the_folder(tmp_path, name):
    """Not even a dangling or a circular one."""
    folder = tmp_path / "model"
    lm_in(folder, max_shard_size=4000 if name == INDEX else 10**9)
    outside = shutil.move(folder / name, tmp_path / name)
    for target, says in ((outside, "out of the folder"), ("nowhere", "missing"), (name, "missing")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=says):
            folders.load_lm(folder)
            folders.load_generation(folder)


def test_a_snapshot_of_the_hubs_cache_loads(tmp_path):
    """There every file is a link into the repository's blobs."""
    lm, _ = lm_in(tmp_path / "plain")
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot = tmp_path / "models--x--y" / "snapshots" / "abc"
    for parent in (blobs, snapshot):
        parent.mkdir(parents=True)
    for number, path in enumerate((tmp_path / "plain").iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert folders.load_lm(snapshot).lm is lm
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "plain" / "config.json")
    with pytest.raises(CheckpointError, match="out of the folder"):
        folders.load_lm(snapshot)


def test_an_index_that_names_the_wrong_file(sharded):
    first, second, *_ = files_of(sharded)

    def swap(values):
        names = {v: k for k, v in values["weight_map"].items()}
        values["weight_map"][names[first]] = second

    reindex(sharded, swap)
    with pytest.raises(CheckpointError, match=f"is not in {second}, but in {first}"):
        folders.load_lm(sharded)


def test_an_index_that_leaves_out_and_makes_up(sharded):
    def change(values):
        del values["weight_map"]["model.norm.weight"]
        values["weight_map"]["model.made.up"] = files_of(sharded)[0]

    reindex(sharded, change)
    with pytest.raises(CheckpointError) as caught:
        folders.load_lm(sharded)
    assert "model.made.up is not in model-00001" in str(caught.value)
    assert "model.norm.weight in model-" in str(caught.value)
    assert "is not in the index" in str(caught.value)


def test_a_tensor_in_two_shards(sharded):
    extra = {"model.norm.weight": np.ones(16, np.float32)}
    safetensors.numpy.save_file(extra, sharded / "extra.safetensors")

    def change(values):
        values["weight_map"]["other"] = "extra.safetensors"

    reindex(sharded, change)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in extra\.safetensors is not"):
        folders.load_lm(sharded)


def test_missing_shards_are_all_named(sharded):
    first, second, *_ = files_of(sharded)
    (sharded / first).unlink()
    (sharded / second).unlink()
    with pytest.raises(CheckpointError, match=f"{first} is missing; {second} is missing"):
        folders.load_lm(sharded)


def test_a_shard_cut_short(sharded):
    path = sharded / files_of(sharded)[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{path.name}.*cut short"):
        folders.load_lm(sharded)


def test_a_folder_for_a_shard(sharded):
    path = sharded / files_of(sharded)[1]
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        folders.load_lm(sharded)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_indices_that_are_none(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must be a JSON object|weight_map must map"):
        folders.load_lm(sharded)


def test_where_both_stand_the_single_file_counts(sharded):
    """As in transformers: leftovers of an older save do not matter."""
    _, params = lm_in(sharded.parent / "other", seed=5)
    shutil.copy(sharded.parent / "other" / SINGLE, sharded / SINGLE)
    assert equal(folders.load_lm(sharded).params, params)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        folders.load_lm(tmp_path / "nowhere")


def test_every_family_has_a_reward_and_a_language_name(family):
    assert {family.causal, family.classifier, *family.bases}
    named = [f.causal for f in FAMILIES.values()] + [f.classifier for f in FAMILIES.values()]
    assert len(set(named)) == 2 * len(FAMILIES)
