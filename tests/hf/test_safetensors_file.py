"""One safetensors file: what others write we read, and the reverse; no header is believed."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import safetensors_file
from jaxrlhf.hf.safetensors_file import Planned, open_file, read, write

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([[1.5, -2.25]], np.float16),
    "brain": np.array([0.5, 3.0, -7.0], ml_dtypes.bfloat16),
    "scalar": np.array(4.0, np.float64),
    "empty": np.zeros((0, 5), np.float32),
    "mask": np.array([True, False, True]),
    "ids": np.array([[-1], [2**40]], np.int64),
}


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_reference_library_writes(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = open_file(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        found = read(file, name)
        assert found.dtype == array.dtype and np.array_equal(found, array)


def test_the_reference_library_reads_what_we_write(tmp_path):
    dtypes = {dtype: name for name, dtype in safetensors_file.DTYPES.items()}
    plans = [
        Planned(name, dtypes[array.dtype], array.shape, lambda array=array: array)
        for name, array in ARRAYS.items()
    ]
    write(tmp_path / "x.safetensors", plans, {"format": "pt"})
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_view_is_written_as_what_it_shows(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write(tmp_path / "x.safetensors", [Planned("t", "F32", (3, 2), lambda: array)], {})
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["t"], array)


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros(2, np.float64)])
def test_a_tensor_unlike_its_plan_is_not_written_as_something_else(tmp_path, array):
    with pytest.raises(ValueError, match="planned was"):
        write(tmp_path / "x.safetensors", [Planned("t", "F32", (2,), lambda: array)], {})


def test_what_is_read_cannot_be_written_to(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        read(open_file(tmp_path / "x.safetensors"), "a")[:] = 1


HOSTILE = {
    "empty": (b"", "0 bytes are too few"),
    "seven bytes": (b"\x00" * 7, "7 bytes are too few"),
    # 4 GB: 2 ** 32 bytes of header in a file of 16.
    "huge header": ((2**32).to_bytes(8, "little") + b"{}      ", "at most 100,000,000"),
    "negative header": (b"\xff" * 8 + b"{}", "at most 100,000,000"),
    "header past the end": ((50).to_bytes(8, "little") + b"{}", "should end at byte 58 of 10"),
}
HEADERS = {
    "not JSON": (b"{'a': 1}", "not valid JSON"),
    "not text": (b"{\xff\xfe}", "not valid JSON"),
    "not an object": (b"[1, 2]", "not a JSON object"),
    "bottomless": (b'{"a":' * 50_000, "nested too deeply"),
    "twins": (b'{"t": 1, "t": 1}', "'t' stands there twice"),
    "infinity": (b'{"t": Infinity}', "Infinity is no JSON"),
    "huge number": (b'{"t": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, "__metadata__ must map strings"),
    "metadata list": ({"__metadata__": []}, "__metadata__ must map strings"),
    "no offsets": ({"t": {"dtype": "F32", "shape": [2]}}, "t: needs data_offsets, dtype, shape"),
    "more fields": ({"t": {**entry(), "code": "x"}}, "t: needs data_offsets, dtype, shape"),
    "unknown dtype": ({"t": entry(dtype="F4")}, "dtype F4 is not one of BOOL"),
    "dtype list": ({"t": entry(dtype=["F32"])}, "is not one of BOOL"),
    "negative shape": ({"t": entry(shape=[-2])}, "is not a list of sizes"),
    "boolean shape": ({"t": entry(shape=[True, 2])}, "is not a list of sizes"),
    "fraction shape": ({"t": entry(shape=[2.0])}, "is not a list of sizes"),
    "shape is a number": ({"t": {**entry(), "shape": 2}}, "is not a list of sizes"),
    "too many axes": ({"t": entry(shape=[1] * 40 + [2])}, "at most 32"),
    "shape too large": ({"t": entry(shape=[3])}, "does not take the 8 bytes"),
    "overflowing shape": ({"t": entry(shape=[2**62, 2**62, 2])}, "does not take the 8 bytes"),
    "shape hides bytes": ({"t": entry(shape=[1])}, "does not take the 8 bytes"),
    "backwards": ({"t": entry(offsets=[8, 0])}, "are not [begin, end]"),
    "negative offset": ({"t": entry(offsets=[-8, 0])}, "are not [begin, end]"),
    "three offsets": ({"t": entry(offsets=[0, 4, 8])}, "are not [begin, end]"),
    "past the end": ({"t": entry(shape=[4], offsets=[0, 16])}, "cut short, or a lie"),
    "overlap": (
        {"t": entry(), "u": entry(shape=[1], offsets=[4, 8])},
        "u: overlaps the tensor before it",
    ),
    "gap": ({"t": entry(shape=[1], offsets=[4, 8])}, "t: leaves a gap"),
    "trailing bytes": ({"t": entry(shape=[1], offsets=[0, 4])}, "4 bytes after the last"),
}


@pytest.mark.parametrize(("raw", "says"), HOSTILE.values(), ids=HOSTILE)
def test_files_that_are_none(tmp_path, raw, says):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=says):
        open_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(tmp_path, header, says):
    path = header_file(tmp_path / "x.safetensors", header, b"\0" * 8)
    with pytest.raises(CheckpointError) as caught:
        open_file(path)
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_same_headers_told_the_truth(tmp_path):
    header = {"t": entry(shape=[1], offsets=[0, 4]), "u": entry(shape=[1], offsets=[4, 8])}
    file = open_file(header_file(tmp_path / "x.safetensors", header, b"\0" * 8))
    assert np.array_equal(read(file, "u"), np.zeros(1, np.float32))


@pytest.mark.parametrize("keep", [4, 40, 0.5, -1])
def test_a_file_cut_short_anywhere(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut short|too few"):
        open_file(path)


def test_a_file_cut_short_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"t": np.ones(100_000, np.float32)}, path)
    file = open_file(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="t cannot be read"):
        read(file, "t")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_file(tmp_path / "x.safetensors")
