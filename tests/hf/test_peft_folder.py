"""Adapters in PEFT's folders: names, fused projections, round trips, and hostile strangers."""

import json

import hf_tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hf_tiny import equal, params_of

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import peft_folder
from jaxrlhf.hf.peft_folder import load_adapter, module_targets, save_adapter
from jaxrlhf.models import Lora, lora, make_lm

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def adapted(config, spec, seed=0):
    """Adapters and scales of a tiny model; nothing is 0, or a mistake in it would not show."""
    base = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    adapters = jax.tree.map(
        lambda leaf: jnp.array(rng.normal(0, 0.3, leaf.shape), jnp.float32),
        jax.eval_shape(lambda: lora.init(spec, jax.random.key(0), base)),
    )
    return adapters, lora.scales(spec, base)


def saved(folder, name, spec=None, **options):
    config = hf_tiny.config_of(name)
    adapters, scales = adapted(config, spec or Lora(rank=2, alpha=3.0))
    save_adapter(folder, config, lora.attach(adapters, scales), family=name, **options)
    return config, adapters, scales


def all_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), found, expected
    )


def config_json(folder):
    return json.loads((folder / CONFIG).read_text())


def edit(folder, **fields):
    (folder / CONFIG).write_text(json.dumps(config_json(folder) | fields))


def tensors(folder):
    return safetensors.numpy.load_file(folder / WEIGHTS)


def rewrite(folder, found):
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v) for k, v in found.items()}, folder / WEIGHTS
    )


def theirs_from(folder, module, scale, out_last=False):
    """The change of their weight, as PEFT computes it: s·B·A, transposed for a Conv1D."""
    found = tensors(folder)
    a, b = (found[f"{PREFIX}{module}.lora_{letter}.weight"] for letter in "AB")
    return scale * (b @ a).T if out_last else scale * (b @ a)


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize(
    "spec",
    [
        Lora(rank=2, alpha=3.0),
        Lora(rank=4, alpha=3.0, use_rslora=True),
        Lora(rank=2, targets=("q_proj", "k_proj", "v_proj", "down_proj")),
    ],
    ids=["all", "rslora", "some"],
)
def test_out_and_in_is_the_same_adapter(family, spec, tmp_path):
    config, adapters, scales = saved(tmp_path, family.name, spec, base="org/base")
    found = load_adapter(tmp_path, config, family=family.name)
    assert equal(found.adapters, adapters)
    all_close(found.scales, scales)  # alpha / r is rounded
    assert found.head is None and found.base == "org/base"


def test_names_and_shapes_are_peft_s(tmp_path):
    """Llama: in 16; q 4·4 = 16 columns, k and v 2·4 = 8; d_ff 20."""
    saved(tmp_path, "llama")
    shapes = {name: tensor.shape for name, tensor in tensors(tmp_path).items()}
    first = f"{PREFIX}model.layers.0."
    assert len(shapes) == 3 * 7 * 2
    assert shapes[f"{first}self_attn.k_proj.lora_A.weight"] == (2, 16)
    assert shapes[f"{first}self_attn.k_proj.lora_B.weight"] == (8, 2)
    assert shapes[f"{first}mlp.down_proj.lora_A.weight"] == (2, 20)
    assert shapes[f"{first}mlp.down_proj.lora_B.weight"] == (16, 2)
    values = config_json(tmp_path)
    assert values["r"] == 2 and values["lora_alpha"] == 3 and values["rank_pattern"] == {}
    assert values["target_modules"] == [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ]
    assert values["task_type"] == "CAUSAL_LM" and values["fan_in_fan_out"] is False


@pytest.mark.parametrize(
    ("name", "module", "ours"),
    [
        ("llama", "model.layers.1.self_attn.k_proj", ("k_proj",)),
        ("gpt2", "transformer.h.1.attn.c_attn", ("q_proj", "k_proj", "v_proj")),
        ("gpt2", "transformer.h.1.attn.c_proj", ("o_proj",)),
        ("gpt2", "transformer.h.1.mlp.c_proj", ("down_proj",)),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", ("q_proj", "k_proj", "v_proj")),
        ("gpt_neox", "gpt_neox.layers.1.attention.dense", ("o_proj",)),
    ],
)
def test_the_change_of_their_weight_is_the_change_of_ours(name, module, ours, tmp_path):
    """s·B·A as PEFT adds it, cut into ours as the family cuts its weights, is our s·A·B."""
    config, adapters, _ = saved(tmp_path, name, Lora(rank=2, alpha=3.0))
    delta = theirs_from(tmp_path, module, 1.5, out_last=name == "gpt2")  # s = 3 / 2
    entry = next(e for e in hf_tiny.FAMILIES[name].entries(config) if e.name == f"{module}.weight")
    assert delta.shape == entry.shape
    for part, projection in zip(entry.split(delta), ours, strict=True):
        pair = adapters["blocks"][projection]
        expected = 1.5 * pair["lora_a"][1] @ pair["lora_b"][1]
        np.testing.assert_allclose(part, expected, atol=1e-6)


# ------------------------------------------------------------------ fused projections


def test_fused_projections_have_the_ranks_of_their_parts(tmp_path):
    """q, k and v of rank 2 are one module of rank 6; s = 3/2 stays, so its alpha is 9."""
    saved(tmp_path, "gpt2")
    values = config_json(tmp_path)
    assert values["r"] == 2 and values["lora_alpha"] == 3
    assert values["rank_pattern"] == {"c_attn": 6} and values["alpha_pattern"] == {"c_attn": 9}
    # Two modules end in c_proj: their names are written in full, as they may differ.
    assert values["target_modules"] == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert values["fan_in_fan_out"] is True
    found = tensors(tmp_path)[f"{PREFIX}transformer.h.0.attn.c_attn.lora_B.weight"]
    assert found.shape == (48, 6)
    for part in range(3):
        block = np.delete(found[16 * part : 16 * (part + 1)], [2 * part, 2 * part + 1], axis=1)
        assert not block.any()


def test_an_adapter_of_a_fused_projection_is_read_as_three(tmp_path):
    """As PEFT trains it: one A for q, k and v. Unchanged, it goes out with one A again."""
    config, adapters, scales = saved(tmp_path, "gpt2")
    shared = adapters["blocks"]["q_proj"]["lora_a"]
    for name in ("k_proj", "v_proj"):
        adapters["blocks"][name]["lora_a"] = shared
    save_adapter(tmp_path, config, lora.attach(adapters, scales), family="gpt2")
    values = config_json(tmp_path)
    assert values["rank_pattern"] == {} and values["alpha_pattern"] == {}
    assert tensors(tmp_path)[f"{PREFIX}transformer.h.0.attn.c_attn.lora_A.weight"].shape == (2, 16)
    assert equal(load_adapter(tmp_path, config, family="gpt2").adapters, adapters)


def test_a_fused_adapter_of_three_times_the_rank_is_not_cut_unless_it_is_of_blocks(tmp_path):
    """Of rank 6 where others have 2, as ours are, but every row of B reads every column of A."""
    config, _, _ = saved(tmp_path, "gpt2")
    found = tensors(tmp_path)
    name = f"{PREFIX}transformer.h.1.attn.c_attn.lora_B.weight"
    found[name] = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
    rewrite(tmp_path, found)
    read = load_adapter(tmp_path, config, family="gpt2").adapters["blocks"]
    assert read["q_proj"]["lora_a"].shape == (3, 16, 6)
    delta = theirs_from(tmp_path, "transformer.h.1.attn.c_attn", 1.0, out_last=True)
    for part, projection in zip(np.split(delta, 3, axis=1), ("q", "k", "v"), strict=True):
        pair = read[f"{projection}_proj"]
        np.testing.assert_allclose(pair["lora_a"][1] @ pair["lora_b"][1], part, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_part_of_a_fused_projection_leaves_the_others_alone(name, tmp_path):
    """Only q and v trained: k's change is zero. Read back, all three are adapted, to that."""
    spec = Lora(rank=2, alpha=2.0, targets=("q_proj", "v_proj"))
    config, adapters, scales = saved(tmp_path, name, spec)
    base = params_of(config)
    before = lora.merge(lora.attach(base, lora.attach(adapters, scales)))
    found = load_adapter(tmp_path, config, family=name)
    after = lora.merge(lora.attach(base, lora.attach(found.adapters, found.scales)))
    all_close(after, before)


# ------------------------------------------------------------------ reward models and meshes


def test_a_reward_model_brings_its_head(tmp_path):
    config = hf_tiny.config_of("llama")
    params = lora.attach(*adapted(config, Lora(rank=2)))
    head = {"kernel": jnp.arange(16, dtype=jnp.float32), "bias": jnp.float32(0.1)}
    save_adapter(tmp_path, config, params, head=head, family="llama")
    values = config_json(tmp_path)
    assert values["task_type"] == "SEQ_CLS" and values["modules_to_save"] == ["score"]
    assert tensors(tmp_path)[f"{PREFIX}score.weight"].shape == (1, 16)
    found = load_adapter(tmp_path, config, family="llama")
    assert equal(found.head, head)


def test_a_mesh_holds_adapters_as_it_holds_their_kernels(tmp_path):
    config, adapters, _ = saved(tmp_path, "llama")
    mesh = sharding.make_mesh(2, 2)
    found = load_adapter(tmp_path, config, family="llama", mesh=mesh)
    pair = found.adapters["blocks"]["up_proj"]
    assert tuple(pair["lora_b"].sharding.spec) == (None, None, "tensor")
    assert len(pair["lora_b"].sharding.device_set) == 4
    assert equal(found.adapters, adapters)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions_are_written_and_read(dtype, tmp_path):
    config, adapters, _ = saved(tmp_path, "qwen3", dtype=dtype)
    found = load_adapter(tmp_path, config, family="qwen3").adapters
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype("float32"), adapters)
    assert equal(found, rounded)


# ------------------------------------------------------------------ names of targets


@pytest.mark.parametrize(
    ("name", "names", "ours"),
    [
        ("llama", ["q_proj", "mlp.up_proj"], ("q_proj", "up_proj")),
        ("gpt2", ["c_attn"], ("q_proj", "k_proj", "v_proj")),
        ("gpt2", ["c_proj"], ("o_proj", "down_proj")),
        ("gpt2", ["attn.c_proj", "o_proj"], ("o_proj",)),
        ("gpt_neox", ["dense", "dense_h_to_4h"], ("o_proj", "up_proj")),
        ("llama", ["all-linear"], ("all-linear",)),
    ],
)
def test_targets_may_be_named_as_in_peft(name, names, ours):
    config = hf_tiny.config_of(name)
    assert module_targets(names, config, family=name) == ours
    Lora(targets=ours)


def test_a_target_of_no_model_is_named():
    with pytest.raises(CheckpointError, match=r"'qproj' is no projection.*self_attn.q_proj"):
        module_targets(["qproj"], hf_tiny.config_of("llama"), family="llama")


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3': only LORA"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type"),
        ({"use_dora": True}, "use_dora = true"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_pattern": "h"}, "layers_pattern"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"use_hydra": True}, "unknown: use_hydra"),
        ({"r": 0}, "r = 0"),
        ({"r": 3}, r"lora_A.weight has shape \(2, 16\), \(3, 16\) was expected"),
        ({"lora_alpha": -1}, "lora_alpha = -1"),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2, "layers.0.*": 2}}, "only plain names"),
        ({"rank_pattern": {"q_proj\\": 2}}, "only plain names"),
        ({"rank_pattern": {"q_proj": 2.5}}, "whole number"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 7}}, "alpha_pattern: self_attn.q_proj"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(fields, says, tmp_path):
    config, _, _ = saved(tmp_path, "llama")
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=says):
        load_adapter(tmp_path, config, family="llama")


def test_ranks_that_differ_between_layers_are_refused(tmp_path):
    config, _, _ = saved(tmp_path, "llama")
    found = tensors(tmp_path)
    name = f"{PREFIX}model.layers.1.self_attn.q_proj.lora_"
    found[f"{name}A.weight"] = np.zeros((5, 16), np.float32)
    found[f"{name}B.weight"] = np.zeros((16, 5), np.float32)
    rewrite(tmp_path, found)
    pattern = {"layers.1.self_attn.q_proj": 5}
    # alpha 7.5 keeps s = 3/2, so that the rank alone differs
    edit(tmp_path, rank_pattern=pattern, alpha_pattern={"model.layers.1.self_attn.q_proj": 7.5})
    with pytest.raises(CheckpointError, match=r"rank_pattern: self_attn.q_proj differs"):
        load_adapter(tmp_path, config, family="llama")


def test_patterns_of_whole_projections_are_read(tmp_path):
    """rank 2, alpha 5 for v_proj alone: s = 5/2 there and 3/2 elsewhere."""
    config, _, _ = saved(tmp_path, "llama")
    edit(tmp_path, alpha_pattern={"v_proj": 5})
    scales = load_adapter(tmp_path, config, family="llama").scales["blocks"]
    np.testing.assert_array_equal(scales["v_proj"]["lora_scale"], [2.5] * 3)
    np.testing.assert_array_equal(scales["q_proj"]["lora_scale"], [1.5] * 3)


def test_all_problems_with_tensors_are_listed(tmp_path):
    config, _, _ = saved(tmp_path, "llama")
    found = tensors(tmp_path)
    first = f"{PREFIX}model.layers.0.self_attn."
    del found[f"{first}q_proj.lora_A.weight"]
    found[f"{first}k_proj.lora_B.weight"] = np.zeros((8, 3), np.float32)
    found[f"{first}v_proj.lora_B.weight"] = np.zeros((8, 2), np.int32)
    found[f"{PREFIX}lm_head.lora_A.weight"] = np.zeros((2, 16), np.float32)
    rewrite(tmp_path, found)
    with pytest.raises(CheckpointError) as error:
        load_adapter(tmp_path, config, family="llama")
    for says in (
        "q_proj.lora_A.weight is missing",
        "k_proj.lora_B.weight has shape (8, 3), (8, 2) was expected",
        "v_proj.lora_B.weight is I32",
        "lm_head.lora_A.weight is not part of an adapter of this model",
    ):
        assert says in str(error.value)


def test_a_target_without_tensors_is_missing(tmp_path):
    config, _, _ = saved(tmp_path, "llama", Lora(rank=2, alpha=3.0, targets=("q_proj",)))
    edit(tmp_path, target_modules=["q_proj", "v_proj", "of_another_model"])
    with pytest.raises(
        CheckpointError, match=r"layers.0.self_attn.v_proj.lora_A.weight is missing"
    ):
        load_adapter(tmp_path, config, family="llama")


def test_pickles_are_refused(tmp_path):
    config, _, _ = saved(tmp_path, "llama")
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"can run any code.*save_pretrained"):
        load_adapter(tmp_path, config, family="llama")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_damaged_files_are_errors(name, tmp_path):
    config, _, _ = saved(tmp_path, "llama")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=name):
        load_adapter(tmp_path, config, family="llama")
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_adapter(tmp_path, config, family="llama")


def test_a_bias_that_is_no_number_is_refused(tmp_path):
    config = hf_tiny.config_of("llama")
    params = lora.attach(*adapted(config, Lora(rank=2)))
    head = {"kernel": jnp.ones(16), "bias": jnp.float32(np.nan)}
    save_adapter(tmp_path, config, params, head=head, family="llama")
    with pytest.raises(CheckpointError, match="score_bias"):
        load_adapter(tmp_path, config, family="llama")


def test_a_killed_save_leaves_no_half_adapter(tmp_path, monkeypatch):
    """Where the config is, the weights are those of the same save."""
    config, _, _ = saved(tmp_path, "llama")
    monkeypatch.setattr(peft_folder.safetensors_file, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, "llama", Lora(rank=4))
    with pytest.raises(CheckpointError, match=f"{CONFIG} is missing"):
        load_adapter(tmp_path, config, family="llama")


def killed(*_):
    raise KeyboardInterrupt


def test_a_full_disk_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        saved(tmp_path / "file" / "folder", "llama")
