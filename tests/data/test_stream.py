"""Rows written one at a time: what is on disk when, torn lines, and files that are not theirs."""

import json

import pytest

from jaxrlhf.data.stream import RowStream
from jaxrlhf.errors import DataError


def row(number: int, text: str = "ä") -> dict:
    return {"row": number, "text": text}


def test_a_row_is_on_disk_when_append_returns(tmp_path):
    path = tmp_path / "rows.partial"
    with RowStream(path) as stream:
        for number in (2, 0, 1):
            stream.append(row(number))
            assert json.loads(path.read_bytes().splitlines()[-1]) == row(number)
        assert stream.done == {0, 1, 2}
        assert stream.rows() == [row(0), row(1), row(2)]
        stream.remove()
    assert not path.exists()


def test_it_goes_on_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "rows.partial"
    with RowStream(path) as stream:
        stream.append(row(0))
        stream.append(row(1))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with RowStream(path) as stream:
            expected = {0, 1} if cut == len(whole) else {0} if cut >= first else set()
            assert stream.done == expected
            for number in {0, 1} - stream.done:
                stream.append(row(number))
        assert path.read_bytes() == whole


def test_a_row_never_stands_twice(tmp_path):
    with RowStream(tmp_path / "rows.partial") as stream:
        stream.append(row(0))
        with pytest.raises(DataError, match="row 0 is there already"):
            stream.append(row(0))
        assert stream.rows() == [row(0)]
    path = tmp_path / "twice.partial"
    path.write_text('{"row": 4}\n{"row": 4}\n')
    with pytest.raises(DataError, match=r"twice.partial:2: row 4 stands twice"):
        RowStream(path)


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"row": 1', ""])
def test_a_line_in_the_middle_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.partial"
    path.write_text(f'{{"row": 0}}\n{line}\n{{"row": 2}}\n')
    with pytest.raises(DataError, match=r"rows.partial:2: not a row"):
        RowStream(path)
    assert path.read_text().count("\n") == 3  # nothing was cut


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "rows.partial"
    with RowStream(path) as stream:
        with pytest.raises(DataError, match="row 0 cannot be written"):
            stream.append({"row": 0, "x": float("nan")})
        assert path.read_bytes() == b"" and not stream.done
