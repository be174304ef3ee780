"""Bars and tables: right figures on a terminal, plain lines elsewhere, and never in the way."""

import io
import sys

import numpy as np
import pytest

from jaxrlhf import progress as module
from jaxrlhf.progress import format_column, format_number, progress, table, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Stands in for the `time` module: tests move it by hand."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def _open_terminal(monkeypatch) -> Terminal:
    # Not a fixture: pytest puts its own stderr in place between a fixture and the test.
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


# -------------------------------------------------------------------------------- without terminal


def test_plain_lines_every_ten_seconds_and_at_the_end(capsys, clock):
    with progress(100, "PPO [step]") as bar:
        for step in range(100):
            clock.now += 0.5
            bar.advance(loss=np.float32(0.25), score=1.5, step_n=step + 1)
    lines = capsys.readouterr().err.splitlines()
    # 50 s at one step every half second: a line at 10, 20, 30, 40 and 50 s, and the last one.
    assert len(lines) == 6
    assert lines[0] == (
        "PPO [step]  20/100  0:10 elapsed, 0:40 left  loss 0.2500  score 1.500  step_n 20"
    )
    assert lines[-1] == "PPO [step]  100/100  done in 0:50  loss 0.2500  score 1.500  step_n 100"


def test_a_short_job_prints_its_end_only(capsys, clock):
    assert list(track([3, 1, 2], "sorting")) == [3, 1, 2]
    assert capsys.readouterr().err == "sorting  3/3  done in 0:00\n"


def test_the_time_left_does_not_count_what_an_earlier_run_did(capsys, clock):
    with progress(100, "PPO", start=80) as bar:
        clock.now += 10
        bar.advance(10)  # 10 in 10 s, 10 more to go
    assert capsys.readouterr().err.splitlines()[0] == "PPO  90/100  0:10 elapsed, 0:10 left"


def test_unknown_and_zero_totals(capsys, clock):
    for item in track(iter("ab"), "letters"):
        clock.now += 2000 + (item == "b") * 1800
    with progress(0, "nothing"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "letters  1  33:20 elapsed",
        "letters  2  1:36:40 elapsed",
        "letters  2  done in 1:36:40",
        "nothing  0/0  done in 0:00",
    ]


def test_an_exception_passes_and_the_line_says_stopped(capsys, clock):
    with pytest.raises(KeyboardInterrupt), progress(5, "PPO") as bar:
        bar.advance(2)
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "PPO  2/5  stopped in 0:00\n"


def test_output_goes_to_stderr_only(capsys, clock):
    list(track([1], "x"))
    table("t", ["a"], [[1]])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["none", "closed", "broken"])
def test_a_useless_stderr_does_not_stop_the_run(monkeypatch, clock, kind):
    class Broken(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    stream = {"none": None, "closed": io.StringIO(), "broken": Broken()}[kind]
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module.console, "quiet", False)
    seen = 0
    for _ in track(range(3), "x"):
        clock.now += 20
        seen += 1
    table("t", ["a"], [[1]])
    assert seen == 3


def test_force_color_alone_does_not_draw_bars_into_a_log(capsys, monkeypatch, clock):
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(track([1], "x"))
    assert capsys.readouterr().err == "x  1/1  done in 0:00\n"


# ------------------------------------------------------------------------------------- on terminal


def test_the_bar_shows_count_and_figures(monkeypatch):
    terminal = _open_terminal(monkeypatch)
    with progress(4, "PPO [b]bold[/b]") as bar:
        for _ in range(4):
            bar.advance(score=1.25)
    drawn = terminal.getvalue()
    assert "PPO [b]bold[/b]" in drawn, "a description is text, not markup"
    assert "4/4" in drawn and "score 1.250" in drawn


def test_bars_nest_on_a_terminal_and_clean_up_after_an_exception(monkeypatch):
    terminal = _open_terminal(monkeypatch)
    with pytest.raises(RuntimeError), progress(2, "outer") as outer:
        for item in track(range(3), "inner"):
            outer.advance(0, item=item)
            assert module._active is not None and len(module._active.tasks) == 2
        raise RuntimeError
    assert module._active is None
    with progress(None, "again") as bar:
        bar.advance()
    assert "outer" in terminal.getvalue() and "again" in terminal.getvalue()


# --------------------------------------------------------------------------------- tables, numbers


def test_table_aligns_numbers_and_keeps_markup_as_text(capsys):
    table("Results [x]", ["stage", "loss"], [["[red]sft", 0.9], ["ppo", 0.875], ["rm", None]])
    text = capsys.readouterr().err
    assert "Results [x]" in text and "[red]sft" in text
    assert "│ 0.900 │" in text and "│ 0.875 │" in text and "│     - │" in text
    table("Empty", ["stage"], [])
    assert "stage" in capsys.readouterr().err


def test_format_number():
    cases = {
        0.0: "0",
        1.0: "1.000",
        0.98123: "0.9812",
        -12.345678: "-12.35",
        123456.7: "123,457",
        0.00001234: "1.23e-05",
        float("nan"): "nan",
        float("-inf"): "-inf",
        12000: "12,000",
        "text": "text",
    }
    assert {value: format_number(value) for value in cases} == cases
    assert format_number(None) == "-"
    assert format_number(True) == "yes"
    assert format_number(np.float32(0.5)) == "0.5000"
    assert format_number(np.int32(7)) == "7"
    assert format_number(0.98123, digits=3) == "0.981"


def test_format_column_shares_digits_unless_magnitudes_differ_widely():
    assert format_column([0.9, 0.875, 1.0, 0.0]) == ["0.900", "0.875", "1.000", "0.000"]
    assert format_column([123.456, 1.5, None]) == ["123.5", "1.5", "-"]
    assert format_column([1e-5, 0.5]) == ["1e-05", "0.5000"]
    assert format_column([1.0, float("nan")]) == ["1.000", "nan"]
    assert format_column([1, 2000]) == ["1", "2,000"]
    assert format_column([]) == []
