"""Checkpoints: exact, whole or absent, and clear about what is wrong with them."""

import logging
import resource
import shutil
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlhf import sharding
from jaxrlhf.algorithms.base import State, new_state
from jaxrlhf.checkpoint import Checkpoints
from jaxrlhf.errors import CheckpointError

SHAPE = (8, 4)


class Position:
    """Data that is at batch `at`."""

    def __init__(self, at: int = 0):
        self.at = at

    def get_state(self):
        return {"position": {"next_index": self.at}, "data": 2**40 + 1}

    def set_state(self, state):
        assert state["data"] == 2**40 + 1
        self.at = state["position"]["next_index"]


def params(value: float) -> dict:
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return {"embed": {"embedding": jnp.asarray(value + noise)}}


def state(step: int) -> State:
    """A state as training leaves it: Adam's moments and counter, and something extra."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    new = new_state(params(step), optimizer, {"kl_coef": jnp.float32(step / 7)})
    grads = jax.tree.map(lambda x: x * step, new.params)
    _, opt_state = optimizer.update(grads, new.opt_state, new.params)
    return new._replace(step=jnp.int32(step), opt_state=opt_state)


@pytest.fixture(scope="module")
def states() -> dict[int, State]:
    return {step: state(step) for step in (1, 2, 3)}


def abstract(like: State, mesh=None) -> State:
    layout = sharding.tree_sharding(mesh or sharding.make_mesh(1, 1), like)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, layout
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def written(states, tmp_path_factory) -> Path:
    """Checkpoints 1, 2 and 3 with data positions 10, 20 and 30, of which two are kept."""
    folder = tmp_path_factory.mktemp("written")
    with closing(Checkpoints(folder, keep=2)) as store:
        for step, one in states.items():
            store.save(step, one, Position(10 * step))
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def restore(folder: Path, like: State, mesh=None) -> tuple[State | None, int]:
    position = Position()
    with closing(Checkpoints(folder)) as store:
        return store.restore(abstract(like, mesh), position), position.at


def test_what_was_saved_comes_back_bit_for_bit(folder, states):
    restored, at = restore(folder, states[1])
    assert_same(restored, states[3])
    assert type(restored) is State and type(restored.opt_state) is type(states[3].opt_state)
    assert at == 30


def test_only_the_newest_are_kept(written):
    assert sorted(p.name for p in written.iterdir() if p.is_dir()) == ["2", "3"]


def test_where_nothing_was_saved_there_is_nothing_to_restore(tmp_path, states):
    assert restore(tmp_path / "new", states[1]) == (None, 0)
    with closing(Checkpoints(tmp_path / "unused")) as store:
        assert store.restore(abstract(states[1]), None) is None


def test_data_without_a_position_can_be_saved(tmp_path, states):
    with closing(Checkpoints(tmp_path)) as store:
        store.save(1, states[1], None)
        assert_same(store.restore(abstract(states[1]), None), states[1])


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (1, 4)])
def test_another_mesh_reads_the_same_numbers(tmp_path, folder, states, data, tensor):
    mesh = sharding.make_mesh(data, tensor)
    spread, _ = restore(folder, states[1], mesh)
    assert spread is not None
    assert_same(spread, states[3])
    table = spread.params["embed"]["embedding"]
    assert table.sharding == abstract(states[1], mesh).params["embed"]["embedding"].sharding
    assert table.sharding.shard_shape(SHAPE) == (8 // tensor, 4)
    with closing(Checkpoints(tmp_path / "spread")) as store:
        store.save(3, spread, Position(30))
    assert_same(restore(tmp_path / "spread", states[1])[0], states[3])


# Damage.


def files(folder: Path, pattern: str) -> list[Path]:
    found = [path for path in folder.glob(pattern) if path.is_file()]
    assert found, pattern
    return found


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


IMPORTANT = ("state/d/*", "state/manifest.ocdbt", "state/_METADATA", "data/metadata")


@pytest.mark.parametrize("pattern", IMPORTANT)
@pytest.mark.parametrize("damage", [remove, halve, empty])
def test_the_one_before_a_damaged_checkpoint_is_used_and_a_line_says_so(
    folder, states, caplog, pattern, damage
):
    for path in files(folder / "3", pattern):
        damage(path)
    with caplog.at_level(logging.WARNING, logger="jaxrlhf.checkpoint"):
        restored, at = restore(folder, states[1])
    assert_same(restored, states[2])
    assert at == 20
    lines = [r.getMessage() for r in caplog.records if r.name == "jaxrlhf.checkpoint"]
    assert len(lines) == 1 and "checkpoint 3 cannot be read" in lines[0]
    assert str(folder) in lines[0] and "trying the one before it" in lines[0]


@pytest.mark.parametrize("part", ["state", "data", ""])
def test_a_checkpoint_with_a_part_missing_is_damaged(folder, states, part):
    shutil.rmtree(folder / "3" / part)
    (folder / "3").mkdir(exist_ok=True)
    assert_same(restore(folder, states[1])[0], states[2])


def test_the_run_goes_on_and_saves_the_damaged_step_again(folder, states):
    for path in files(folder / "3", "state/d/*"):
        halve(path)
    with closing(Checkpoints(folder)) as store:
        position = Position()
        store.restore(abstract(states[1]), position)
        store.save(3, states[3], Position(31))
    restored, at = restore(folder, states[1])
    assert_same(restored, states[3])
    assert at == 31


def test_where_no_checkpoint_can_be_read_the_error_names_them_all(folder, states):
    for step in ("2", "3"):
        for path in files(folder / step, "data/metadata"):
            remove(path)
    with pytest.raises(CheckpointError) as caught:
        restore(folder, states[1])
    message = str(caught.value)
    assert f"{folder}: no readable checkpoint" in message
    assert "checkpoint 2: " in message and "checkpoint 3: " in message


def test_a_flipped_bit_never_changes_a_number(folder, states, tmp_path):
    """It is found, or it is in a part that nobody reads."""
    rng, found = np.random.default_rng(0), 0
    for number in range(12):
        broken = Path(shutil.copytree(folder, tmp_path / str(number)))
        path = rng.choice(files(broken / "3", "state/d/*"))
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        restored, at = restore(broken, states[1])
        assert_same(restored, states[at // 10])
        found += at == 20
    assert found


def test_what_a_kill_leaves_behind_is_ignored_and_removed(folder, states):
    """Orbax writes to a folder of another name and renames it when it is whole."""
    for name in ("4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-17"):
        shutil.copytree(folder / "3", folder / name)
    restored, at = restore(folder, states[1])
    assert_same(restored, states[3])
    assert at == 30
    with closing(Checkpoints(folder)) as store:  # what it has begun to remove is gone by a save
        store.save(4, states[3], Position(40))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4"]


# Another model.


def test_a_checkpoint_of_another_shape_lists_names_and_shapes(folder, states):
    other = states[1]._replace(
        params={"embed": {"embedding": jnp.zeros((16, 4))}, "final_norm": {"scale": jnp.zeros(4)}},
        extra={},
    )
    with pytest.raises(CheckpointError) as caught:
        restore(folder, other)
    message = str(caught.value)
    assert str(folder / "3") in message and "another model" in message
    assert "params/final_norm/scale is missing" in message
    assert "extra/kl_coef is not part of this model" in message
    assert "params/embed/embedding has shape (8, 4), this model needs (16, 4)" in message
    assert "opt_state" not in message
    assert (folder / "3").is_dir()  # it is somebody's run: nothing is deleted


# A full disk.


@contextmanager
def full_disk(limit: int):
    """No file of this process may grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_error_and_the_checkpoint_before_stays_good(folder, states):
    with closing(Checkpoints(folder, keep=1)) as store, full_disk(100):
        with pytest.raises(CheckpointError) as caught:
            store.save(4, states[3], Position(40))
    message = str(caught.value)
    assert f"{folder}: checkpoint 4 could not be written" in message
    assert "the last good one is step 3" in message
    restored, at = restore(folder, states[1])
    assert_same(restored, states[3])
    assert at == 30
    with closing(Checkpoints(folder)) as store:
        store.save(4, states[1], Position(40))
    assert restore(folder, states[1])[1] == 40
