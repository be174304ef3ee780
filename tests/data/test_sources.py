"""Files to rows: every kind, exact values, and errors that name file and line."""

import gzip
import json
import random
import re

import pytest

from jaxrlhf.data import sources
from jaxrlhf.data.sources import load_rows
from jaxrlhf.errors import DataError

# Blank lines, a missing final line end, CRLF, a byte order mark, and characters that Python's
# str.splitlines would break a line at (U+2028, U+0085) but JSON Lines does not.
JSONL = '\ufeff{"text": "one\u2028\x85"}\n\n   \n{"text": "two"}\r\n{"text": "\\u00fc"}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL"])
def test_jsonl(write, name):
    path = write(name, JSONL)
    rows = load_rows(path)
    assert [row["text"] for row in rows] == ["one\u2028\x85", "two", "ü"]
    assert [rows.where(i) for i in range(3)] == [f"{path}:1", f"{path}:4", f"{path}:5"]


def test_json_array_object_and_lines(write):
    assert list(load_rows(write("a.json", '[{"a": 1},\n {"a": 2}]'))) == [{"a": 1}, {"a": 2}]
    assert list(load_rows(write("b.json", '{\n"a": 1\n}'))) == [{"a": 1}]
    assert list(load_rows(write("c.json", '{"a": 1}\n{"a": 2}\n'))) == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"d.json: malformed JSON: .* at line 2"):
        load_rows(write("d.json", '[{"a": 1},\n {"a": }]'))
    with pytest.raises(DataError, match=r"e.json: entry 2: a row must be an object, not int"):
        load_rows(write("e.json", '[{"a": 1}, 2]'))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv(write, name):
    path = write(name, 'text,n\r\n"two\nlines",1\n\nNA,007\n"a ""quote"", x",\n')
    rows = load_rows(path)
    assert list(rows) == [
        {"text": "two\nlines", "n": "1"},
        {"text": "NA", "n": "007"},
        {"text": 'a "quote", x', "n": ""},
    ]
    # Line 1 is the header; the first record takes lines 2-3, line 4 is blank.
    assert [rows.where(i).rsplit(":", 1)[1] for i in range(3)] == ["2", "5", "6"]


def test_csv_long_value_and_global_limit_restored(write):
    import csv

    before = csv.field_size_limit()
    rows = load_rows(write("a.csv", "text\n" + "x" * 200_000 + "\n"))
    assert len(rows[0]["text"]) == 200_000 and csv.field_size_limit() == before


def test_txt_drops_blank_lines(write):
    rows = load_rows(write("a.txt.gz", "one\n\n  \n two \n"))
    assert [row["text"] for row in rows] == ["one", " two "]
    assert rows.where(1).endswith("a.txt.gz:4")


def test_values_are_exact(write):
    """What type guessing by column would change: dates, missing keys, null words, numbers."""
    lines = ['{"text": "2020-01-01"}', '{"text": "NA", "n": 1}', '{"text": "null", "n": 1.5}']
    rows = load_rows(write("a.jsonl", "\n".join(lines)))
    assert [row["text"] for row in rows] == ["2020-01-01", "NA", "null"]
    assert "n" not in rows[0] and type(rows[1]["n"]) is int and rows.columns == ["text", "n"]


def test_parquet(tmp_path):
    import datasets

    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}]
    datasets.Dataset.from_list([{"messages": messages, "n": i} for i in range(3)]).to_parquet(path)
    rows = load_rows(path, limit=2)
    assert list(rows) == [{"messages": messages, "n": 0}, {"messages": messages, "n": 1}]
    assert rows.where(1) == f"{path} row 2"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"a.parquet: not a readable Parquet file"):
        load_rows(path)


def test_a_changed_file_is_read_again(write, tmp_path):
    import datasets

    assert list(load_rows(write("a.jsonl", '{"a": 1}'))) == [{"a": 1}]
    assert list(load_rows(write("a.jsonl", '{"a": 2}'))) == [{"a": 2}]
    for value in (1, 2):
        datasets.Dataset.from_list([{"a": value}]).to_parquet(tmp_path / "a.parquet")
        assert list(load_rows(tmp_path / "a.parquet")) == [{"a": value}]


def test_several_files_and_limit(write):
    a, b = write("a.txt", "1\n2\n3\n"), write("b.txt", "4\n5\n6\n")
    rows = load_rows([a, b], limit=2)
    assert [row["text"] for row in rows] == ["1", "2", "4", "5"]
    assert rows.where(3) == f"{b}:2" and rows[1:3] == [{"text": "2"}, {"text": "4"}]


def test_limit_reads_no_further(write):
    assert len(load_rows(write("a.jsonl", '{"a": 1}\n{broken'), limit=1)) == 1


BAD_FILES = {
    "empty": ("a.jsonl", b"", "a.jsonl: the file is empty"),
    "blank": ("a.jsonl", b"\n \n", "a.jsonl: the file has no rows"),
    "empty gzip": ("a.jsonl.gz", b"", "a.jsonl.gz: the file has no rows"),
    "header only": ("a.csv", b"text\n", "a.csv: the file has no rows"),
    "malformed": (
        "a.jsonl",
        b'{"a": 1}\n\n{"a": }\n',
        "a.jsonl:3: malformed JSON: Expecting value",
    ),
    "two values": ("a.jsonl", b'{"a": 1} {"a": 2}\n', "a.jsonl:1: malformed JSON: Extra data"),
    "NaN": ("a.jsonl", b'{"a": NaN}\n', "a.jsonl:1: malformed JSON: NaN is not a JSON number"),
    "deep": ("a.jsonl", b"[" * 100_000, "a.jsonl:1: malformed JSON"),
    "list": ("a.jsonl", b'{"a": 1}\n[1, 2]\n', "a.jsonl:2: a row must be an object, not list"),
    "UTF-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a.jsonl:2: not UTF-8: byte b'\\xff' at 7"),
    "UTF-8 in gzip": ("a.txt.gz", b"fine\n\n\xe9t\xe9\n", "a.txt.gz:3: not UTF-8"),
    "UTF-8 in csv": ("a.csv", b"a\nx\n\xe9\n", "a.csv:3: not UTF-8"),
    "UTF-16": ("a.csv", "a\nx".encode("utf-16"), "a.csv:1: not UTF-8 text: it looks like UTF-16"),
    "few values": ("a.csv", b"a,b\n1,2\n\n3\n", "a.csv:4: 1 values for 2 columns"),
    "many values": ("a.csv", b"a,b\n1,2,3\n", "a.csv:2: 3 values for 2 columns"),
    "open quote": ("a.csv", b'a\nx\n"y\nz\n', "a.csv:3: malformed CSV in the row that begins here"),
    "twice": ("a.csv", b"a,a\n1,2\n", "a.csv:1: CSV header: column 'a' stands twice"),
    "unknown": ("a.pdf", b"x", "a.pdf: unknown kind of file; known are .jsonl"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(write, case):
    name, content, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message):
        load_rows(write(name, content))


def test_bad_gzip(write, tmp_path):
    text = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(20_000)).encode()
    zipped = gzip.compress(text)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(zipped[: len(zipped) // 2])
    with pytest.raises(
        DataError, match=r"a.jsonl.gz: broken gzip data after line \d+: .*ended before"
    ):
        load_rows(path)
    path.write_bytes(zipped[:10] + b"\xff" * 100)  # a block of no known kind
    with pytest.raises(DataError, match=r"a.jsonl.gz: broken gzip data at the start: .*invalid"):
        load_rows(path)
    path.write_bytes(zipped[:-8] + bytes(8))  # all there, but the checksum is another
    with pytest.raises(
        DataError, match=r"a.jsonl.gz: broken gzip data after line 20000: CRC check"
    ):
        load_rows(path)
    path.write_bytes(text)
    with pytest.raises(
        DataError, match=r"a.jsonl.gz: broken gzip data at the start: Not a gzipped"
    ):
        load_rows(path)
    with pytest.raises(DataError, match=r"b.jsonl:1: .* its name should end in .gz"):
        load_rows(write("b.jsonl", zipped))


def test_missing_file_names_the_nearest(write, tmp_path):
    write("train.jsonl.gz", "{}")
    with pytest.raises(
        DataError, match=r"trian.jsonl.gz: no such file; did you mean .*/train.jsonl"
    ):
        load_rows(tmp_path / "trian.jsonl.gz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no such file; did you mean .*/folder\?"):
        load_rows(tmp_path / "foldr" / "a.jsonl")
    with pytest.raises(DataError, match=r"is a folder; name a file in it \(train.jsonl.gz\)"):
        load_rows(tmp_path)


def test_arguments(write):
    path = write("a.txt", "x\n")
    assert len(load_rows(path, split="train")) == 1
    with pytest.raises(DataError, match=r"is a file: it has no split 'test'"):
        load_rows(path, split="test")
    with pytest.raises(DataError, match="limit = 0"):
        load_rows(path, limit=0)
    with pytest.raises(DataError, match="no file or data set"):
        load_rows([])


@pytest.mark.parametrize(
    ("spec", "is_file"),
    [
        ("data/train.jsonl", True),
        ("./x", True),
        ("~/x", True),
        ("/x/y", True),
        ("owner/name", False),
        ("imdb", False),
        ("owner/name-v1.5", False),
    ],
)
def test_what_is_a_path(spec, is_file):
    assert sources.is_path(spec) is is_file


def test_hub(monkeypatch):
    import datasets

    table = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    calls = []

    def fake(name, config, *, data_dir, split):
        calls.append((name, config, data_dir, split))
        if name == "owner/none":
            raise FileNotFoundError("no such data set\nmore")
        return table if split else datasets.DatasetDict({"test": table, "dev": table})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    rows = load_rows("owner/name", split="test", config="c", data_dir="d", limit=1)
    assert list(rows) == [{"text": "a"}] and calls == [("owner/name", "c", "d", "test")]
    assert rows.where(0) == "owner/name[test] row 1"
    with pytest.raises(DataError, match="has the splits test, dev: say which"):
        load_rows("owner/name")
    with pytest.raises(DataError, match=r"'owner/none' is no file here.*: no such data set$"):
        load_rows("owner/none")


def random_text(rng):
    pools = ["abc xyz", "äöü", "漢字", "🙂👍🏽", '"\\/,;', "\t\u2028\x85\x0b"]
    return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 30)))


BREAKAGES = [
    b'{"a": ',
    b"{'a': 1}",
    b'{"a": "\xff"}',
    b"nonsense",
    b"[1]",
    b"7",
    b'{"a": 1,}',
    b"\xc3(",
]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("seed", range(20))
def test_fuzz_the_error_names_the_line(write, seed, suffix):
    rng = random.Random(seed)
    lines = [
        b""
        if rng.random() < 0.2
        else json.dumps({"a": random_text(rng)}, ensure_ascii=rng.random() < 0.5).encode()
        for _ in range(rng.randrange(1, 40))
    ]
    good = write(f"good.{suffix}", b"\n".join([*lines, b'{"a": "last"}']))
    rows = load_rows(good)
    texts = [json.loads(line)["a"] for line in lines if line] + ["last"]
    assert [row["a"] for row in rows] == texts
    numbers = [i for i, line in enumerate(lines, 1) if line] + [len(lines) + 1]
    assert [rows.where(i) for i in range(len(rows))] == [f"{good}:{n}" for n in numbers]
    at = rng.randrange(len(lines) + 1)
    lines.insert(at, rng.choice(BREAKAGES))
    end = rng.choice([b"\n", b"\r\n"])
    path = write(f"bad.{suffix}", end.join(lines) + rng.choice([b"", end]))
    with pytest.raises(DataError, match="^" + re.escape(f"{path}:{at + 1}:")):
        load_rows(path)


@pytest.mark.parametrize("seed", range(10))
def test_fuzz_csv(write, seed):
    import csv
    import io

    rng = random.Random(seed)
    texts = ["".join(c for c in random_text(rng) if c != "\x0b") or "x" for _ in range(20)]
    texts = [text + ("\n" + text if rng.random() < 0.3 else "") for text in texts]
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["a", "b"])
    begins = []
    for text in texts:
        if rng.random() < 0.2:
            out.write("\n")
        begins.append(out.getvalue().count("\n") + 1)
        writer.writerow([text, "1"])
    path = write("a.csv", out.getvalue())
    rows = load_rows(path)
    assert [row["a"] for row in rows] == texts
    assert [rows.where(i) for i in range(20)] == [f"{path}:{n}" for n in begins]
    bad = write("b.csv", out.getvalue() + '"only one"\n')
    with pytest.raises(
        DataError, match=f"^{re.escape(str(bad))}:{out.getvalue().count(chr(10)) + 1}:"
    ):
        load_rows(bad)
