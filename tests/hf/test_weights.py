"""Tensors in and out: every family both ways, other names, any layout, and all problems at once."""

import json
import weakref

import hf_tiny
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hf_tiny import equal, params_of

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import weights
from jaxrlhf.hf.entries import Entry, plain
from jaxrlhf.hf.families import FAMILIES
from jaxrlhf.models import make_lm

INDEX = "model.safetensors.index.json"


def abstract_of(params, *, mesh=None, dtype=None):
    layouts = sharding.tree_sharding(mesh, params) if mesh else jax.tree.map(lambda x: None, params)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s),
        params,
        layouts,
        is_leaf=lambda x: x is None,
    )


def load(folder, family, config, params, **layout):
    abstract = abstract_of(params, **layout)
    return weights.load_params(folder, family.entries(config), abstract, ignored=family.ignored)


def saved(folder, family, config, **options):
    params = params_of(config)
    weights.save_params(folder, family.entries(config), params, **options)
    return params


def tensors(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def rewrite(folder, arrays):
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        folder / "model.safetensors",
    )


@pytest.fixture
def gpt2(tmp_path):
    """A tiny GPT-2 on disk: folder, family, config, parameters."""
    family, config = FAMILIES["gpt2"], hf_tiny.config_of("gpt2")
    return tmp_path, family, config, saved(tmp_path, family, config)


@pytest.fixture
def llama(tmp_path):
    family, config = FAMILIES["llama"], hf_tiny.config_of("llama")
    return tmp_path, family, config, saved(tmp_path, family, config)


# ------------------------------------------------------------------ both ways


@pytest.mark.parametrize("shard", [5 * 10**9, 3000])
def test_written_and_read_back(tmp_path, family, shard):
    config = hf_tiny.config_of(family.name)
    params = saved(tmp_path, family, config, max_shard_size=shard)
    assert (tmp_path / INDEX).exists() == (shard == 3000)
    assert equal(load(tmp_path, family, config, params), params)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2", {"tie_word_embeddings": False}),
        ("gpt_neox", {"tie_word_embeddings": True, "attention_bias": False}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("gemma2", {"tie_word_embeddings": False}),
    ],
)
def test_other_heads_and_biases(tmp_path, name, fields):
    family, config = FAMILIES[name], hf_tiny.config_of(name, **fields)
    params = saved(tmp_path, family, config)
    assert ("lm_head" in params) == (not config.tied_head)
    assert equal(load(tmp_path, family, config, params), params)


def test_every_entry_has_the_shape_it_joins_to(family):
    config = hf_tiny.config_of(family.name)
    leaves = weights._flat(params_of(config))
    for entry in family.entries(config):
        parts = [leaves[p] if entry.layer is None else leaves[p][entry.layer] for p in entry.ours]
        theirs = entry.join(*(np.asarray(part) for part in parts))
        assert theirs.shape == entry.shape
        back = entry.split(theirs)
        assert all(np.array_equal(a, b) for a, b in zip(back, parts, strict=True))


def test_where_each_number_of_the_fused_tensors_goes():
    # Conv1D [in, 3 * out]: columns are q, then k, then v.
    config = hf_tiny.config_of("gpt2")
    entries = {entry.name: entry for entry in FAMILIES["gpt2"].entries(config)}
    theirs = np.arange(16 * 48).reshape(16, 48)
    q, k, v = entries["transformer.h.1.attn.c_attn.weight"].split(theirs)
    assert (q[3, 5], k[3, 5], v[3, 5]) == (3 * 48 + 5, 3 * 48 + 16 + 5, 3 * 48 + 32 + 5)
    # GPT-NeoX rows: head h (of 4, 8 wide) has q at 24 h, k at 24 h + 8, v at 24 h + 16.
    config = hf_tiny.config_of("gpt_neox")
    entries = {entry.name: entry for entry in FAMILIES["gpt_neox"].entries(config)}
    name = "gpt_neox.layers.1.attention.query_key_value"
    q, k, v = entries[f"{name}.weight"].split(np.arange(96 * 32).reshape(96, 32))
    column = 2 * 8 + 3  # head 2, dimension 3, of ours
    assert (q[7, column], k[7, column], v[7, column]) == tuple(
        (24 * 2 + offset + 3) * 32 + 7 for offset in (0, 8, 16)
    )
    q, k, v = entries[f"{name}.bias"].split(np.arange(96))
    assert (q[column], k[column], v[column]) == (51, 59, 67)


# ------------------------------------------------------------------ types and places


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kept", [jnp.float32, jnp.bfloat16])
def test_types_of_disk_and_memory_are_independent(tmp_path, stored, kept):
    family, config = FAMILIES["llama"], hf_tiny.config_of("llama")
    params = saved(tmp_path, family, config, dtype=stored)
    found = load(tmp_path, family, config, params, dtype=kept)
    through = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    wanted = jax.tree.map(
        lambda x: jnp.asarray(np.asarray(x).astype(through[stored]).astype(kept)), params
    )
    assert equal(found, wanted)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma3_text", "olmo2"])
def test_a_mesh_gets_its_parts_and_the_same_logits(tmp_path, name):
    family, config = FAMILIES[name], hf_tiny.config_of(name)
    params = saved(tmp_path, family, config)
    mesh = sharding.make_mesh(2, 4)
    found = load(tmp_path, family, config, params, mesh=mesh)
    layout = sharding.tree_sharding(mesh, params)
    assert jax.tree.map(lambda x: x.sharding, found) == layout
    assert equal(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, params))
    up = found["blocks"]["up_proj"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {
        (config.num_layers, config.d_model, config.d_ff // 4)
    }
    lm, mask = make_lm(config), jnp.ones((2, 6), bool)
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    run = jax.jit(lambda p: lm.logits(p, lm.hidden(p, tokens, mask)))
    # The order of sums over 4 devices differs; measured 2e-6 at logits of about 5.
    np.testing.assert_allclose(run(found), run(params), atol=2e-5)


def test_a_sharded_model_is_written_as_a_whole_one(tmp_path):
    family, config = FAMILIES["gpt_neox"], hf_tiny.config_of("gpt_neox")
    params = params_of(config)
    placed = jax.device_put(params, sharding.tree_sharding(sharding.make_mesh(2, 4), params))
    weights.save_params(tmp_path / "a", family.entries(config), params)
    weights.save_params(tmp_path / "b", family.entries(config), placed)
    a, b = ((tmp_path / part / "model.safetensors").read_bytes() for part in "ab")
    assert a == b


def test_what_is_loaded_is_ours_alone(llama):
    """Not a window on the file, and fit to be donated."""
    folder, family, config, params = llama
    found = load(folder, family, config, params)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-4000:] = b"\xff" * 4000
    with open(folder / "model.safetensors", "r+b") as file:  # the same file, changed in place
        file.write(raw)
    assert equal(found, params)
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    after = step(found)
    assert jax.tree.leaves(found)[0].is_deleted()
    assert equal(after, jax.tree.map(lambda x: x + 1, params))


def test_one_tensor_at_a_time(llama, monkeypatch):
    """No array of the file is alive when the next is read."""
    folder, family, config, params = llama
    alive, read = [], weights.Shards.read

    def counting(self, name):
        assert [name for name, array in alive if array() is not None] == []
        array = read(self, name)
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        alive.append((name, weakref.ref(root)))
        return array

    monkeypatch.setattr(weights.Shards, "read", counting)
    load(folder, family, config, params)
    assert len(alive) == len(family.entries(config))


# ------------------------------------------------------------------ names


def test_old_names_of_gpt2(gpt2):
    """The first releases have no `transformer.`, and saved the causal mask in every layer."""
    folder, family, config, params = gpt2
    old = {name.removeprefix("transformer."): array for name, array in tensors(folder).items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))
        old[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    rewrite(folder, old)
    assert equal(load(folder, family, config, params), params)


def test_old_names_of_others(llama, tmp_path):
    folder, family, config, params = llama
    old = tensors(folder)
    old["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    rewrite(folder, old)
    assert equal(load(folder, family, config, params), params)

    folder, family, config = tmp_path / "x", FAMILIES["gpt_neox"], hf_tiny.config_of("gpt_neox")
    params = saved(folder, family, config)
    old = tensors(folder)
    old["lm_head.weight"] = old.pop("embed_out.weight")
    old["gpt_neox.layers.0.attention.bias"] = np.ones((1, 1, 4, 4), bool)
    old["gpt_neox.layers.0.attention.masked_bias"] = np.array(-1e9, np.float32)
    old["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    rewrite(folder, old)
    assert equal(load(folder, family, config, params), params)


def test_a_learned_bias_is_not_taken_for_a_buffer(gpt2):
    folder, family, config, params = gpt2
    old = tensors(folder)
    del old["transformer.h.0.attn.c_attn.bias"]
    rewrite(folder, old)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\.attn\.c_attn\.bias is missing"):
        load(folder, family, config, params)


def test_a_tied_head_may_stand_twice_if_it_is_the_same(gpt2):
    folder, family, config, params = gpt2
    old = tensors(folder)
    table = old["transformer.wte.weight"]
    old["lm_head.weight"] = table.copy()
    rewrite(folder, old)
    assert equal(load(folder, family, config, params), params)
    old["lm_head.weight"][-1, -1] += 1
    rewrite(folder, old)
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        load(folder, family, config, params)
    del old["transformer.wte.weight"]  # and then the head alone is the embedding
    old["lm_head.weight"] = table
    rewrite(folder, old)
    assert equal(load(folder, family, config, params), params)


# ------------------------------------------------------------------ what is wrong, in one error


def test_all_problems_in_one_error(gpt2):
    folder, family, config, params = gpt2
    old = tensors(folder)
    del old["transformer.h.1.ln_1.weight"]
    del old["transformer.wpe.weight"]
    old["transformer.h.2.mlp.c_fc.weight"] = np.zeros((16, 63), np.float32)
    old["transformer.h.0.mlp.c_fc.bias"] = np.zeros(64, np.int32)
    old["transformer.h.3.ln_1.weight"] = np.zeros(16, np.float32)
    old["transformer.h.0.attn.c_attn.extra.bias"] = np.zeros(48, np.float32)
    old["transformer.h.0.attn.bias_of_mine"] = np.zeros(48, np.float32)
    old["adapter.weight"] = np.zeros(1, np.float32)
    rewrite(folder, old)
    with pytest.raises(CheckpointError) as caught:
        load(folder, family, config, params)
    for line in (
        "transformer.h.1.ln_1.weight is missing",
        "transformer.wpe.weight is missing",
        "transformer.h.2.mlp.c_fc.weight has shape (16, 63), config.json says (16, 64)",
        "transformer.h.0.mlp.c_fc.bias is I32; only F64, F32, F16, BF16 can be read",
        "transformer.h.3.ln_1.weight is not part of this model",
        "transformer.h.0.attn.c_attn.extra.bias is not part of this model",
        "transformer.h.0.attn.bias_of_mine is not part of this model",
        "adapter.weight is not part of this model",
        str(folder),
    ):
        assert line in str(caught.value)


def test_of_a_thousand_problems_the_first_are_shown(gpt2):
    folder, family, config, params = gpt2
    old = tensors(folder)
    rewrite(folder, {**old, **{f"x{i:04}": np.zeros(1, np.float32) for i in range(1000)}})
    with pytest.raises(CheckpointError, match="x0039 is not part of this model; and 960 more"):
        load(folder, family, config, params)


def test_a_config_larger_than_the_file_allocates_nothing(gpt2):
    # 2 ** 28 rows would be 17 GB.
    folder, family, _, _ = gpt2
    huge = hf_tiny.config_of("gpt2", vocab_size=2**28)
    with pytest.raises(
        CheckpointError, match=r"has shape \(24, 16\), config.json says \(268435456"
    ):
        weights.check(folder, family.entries(huge), ignored=family.ignored)


def test_a_name_map_with_a_hole_is_a_bug_not_a_bad_file(llama):
    folder, family, config, params = llama
    entries = [
        *family.entries(config)[1:],
        plain("model.embed_tokens.weight", "embed/other", 24, 16),
    ]
    with pytest.raises(ValueError, match=r"differ in embed/embedding, embed/other"):
        weights.load_params(folder, entries, abstract_of(params))


def test_a_part_of_the_wrong_shape_is_not_broadcast(llama):
    folder, family, config, params = llama
    (first, *rest) = family.entries(config)
    wrong = Entry(first.name, first.ours, first.shape, split=lambda theirs: (theirs[:1],))
    with pytest.raises(ValueError, match="for a leaf of"):
        weights.load_params(folder, [wrong, *rest], abstract_of(params))


# ------------------------------------------------------------------ shards


def test_shards_are_small_and_the_index_says_where(tmp_path):
    family, config = FAMILIES["llama"], hf_tiny.config_of("llama")
    saved(tmp_path, family, config, max_shard_size=4000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert files == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*files, INDEX]
    total, names = 0, []
    for file in files:
        arrays = safetensors.numpy.load_file(tmp_path / file)
        names += arrays
        assert all(index["weight_map"][name] == file for name in arrays)
        size = sum(array.nbytes for array in arrays.values())
        assert size <= 4000 or len(arrays) == 1
        total += size
    assert index["metadata"]["total_size"] == total
    assert sorted(names) == sorted(entry.name for entry in family.entries(config))


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tmp_path):
    family, config = FAMILIES["gpt2"], hf_tiny.config_of("gpt2")
    saved(tmp_path, family, config, max_shard_size=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(family.entries(config))
