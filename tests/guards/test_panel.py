"""The panel: how a run ends, what is written down, what is said of guards that do not look; and
that a run which was resumed is judged as one that nobody disturbed."""

import json

import faulty
import optax
import pytest
from faulty import good_share, run

from jaxrlhf.errors import GuardError, NonFiniteError
from jaxrlhf.guards.panel import GuardsConfig, Panel, cell
from jaxrlhf.sandbox.protocol import unit_hash

UPSIDE_DOWN = {"reward_fn": lambda rollout: 1 - good_share(rollout)}


def record(folder):
    return json.loads((folder / "guards.json").read_text())


# A run that is stopped.


def test_the_report_says_what_was_seen_with_numbers_and_samples(tmp_path):
    found = run(tmp_path, "off=[canary]", compare=faulty.better_share, **UPSIDE_DOWN)
    assert found.error and found.error.exit_code == 4
    text = (tmp_path / "guards.md").read_text()
    assert "# Stopped by a guard after update 2" in text
    assert "- **andon**: labellers contradict the reward: the sum is 10.81, the limit 5" in text
    assert "| guards/andon | 3.76003 | 10.8101 |" in text
    assert "| canary | off |" in text and "| kl_budget | watches; found nothing |" in text
    samples = text.partition("lowest-scored samples of this update")[2].splitlines()
    scores = [float(line.split("|")[3]) for line in samples[4:]]
    assert len(scores) == 8 and scores == sorted(scores)
    # An answer of n words of which g are good is paid 1 - (g + .5) / (n + 1).
    words = samples[4].split("|")[2].split()
    paid = 1 - (words.count("good") + 0.5) / (len(words) + 1)
    assert scores[0] == pytest.approx(paid, rel=1e-3)
    assert record(tmp_path)["stopped"] == 2


def test_a_warning_is_said_once_and_counted(tmp_path, caplog):
    found = run(
        tmp_path, "warn=[andon]", "off=[canary]", compare=faulty.better_share, **UPSIDE_DOWN
    )
    assert found.error is None and len(found.rows) == 7
    said = [r.getMessage() for r in caplog.records if "it only warns" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("update 2, guard andon")
    status = found.panel.status()["andon"]
    assert status.startswith("only warns; 5 updates, 2 to 6: labellers contradict")
    assert record(tmp_path)["stopped"] is None
    assert not (tmp_path / "guards.md").exists()


def test_a_dry_run_trains_the_same_to_the_last_bit(tmp_path):
    """Guards read: with all of them warning, and with all off, the parameters are equal."""
    ends = []
    for overrides in (("dry_run=true",), (f"off=[{', '.join(GuardsConfig.names())}]",)):
        found = run(tmp_path, *overrides, compare=faulty.better_share, **UPSIDE_DOWN)
        assert found.error is None
        ends.append(found.store.saved[6][0].params["policy"]["embed"]["embedding"].tobytes())
    assert ends[0] == ends[1]


def test_nothing_is_silently_off(tmp_path, caplog):
    with caplog.at_level("INFO", "jaxrlhf.guards.panel"):
        found = run(tmp_path, "off=[entropy, length]", "warn=[signs]", steps=1)
    (said,) = [r for r in caplog.records if r.getMessage().startswith("guards: ")]
    assert said.levelname == "WARNING"
    assert "9 watch; only warn: signs; off: entropy, length;" in said.getMessage()
    for name in ("andon", "win_rate", "trend", "disagreement"):
        assert f"{name} cannot look (no " in said.getMessage()
    status = found.panel.status()
    assert status["entropy"] == "off" and status["andon"] == "cannot look: no guards.labeller"
    assert len(status) == len(GuardsConfig.names()) + 1 == 17


def test_a_number_that_is_not_finite_has_its_report_too(tmp_path):
    panel = Panel(GuardsConfig(), tmp_path, blind={}, lowest=lambda: [{"completion": "a"}])
    panel.begin([], {})
    panel.watch(3, {})
    with pytest.raises(NonFiniteError), panel.finite():
        raise NonFiniteError("step 4: loss is nan")
    text = (tmp_path / "guards.md").read_text()
    assert "after update 3" in text and "- **non_finite**: step 4: loss is nan" in text


def test_whatever_a_model_says_stays_in_its_cell():
    assert cell("a | b\n| c ") == "a \\| b \\| c" and cell(0.123456) == "0.1235"


# A run that is resumed.


def test_a_resumed_run_trips_at_the_same_update_with_the_same_words(tmp_path):
    """A slow fault, labels that agree with one pair in eight: the sum of the cord has to come
    from before the interruption."""
    options = {"compare": lambda a, b: unit_hash(*a, *b) < 1 / 8, "steps": 40}
    config = ("off=[canary]", "andon.limit=9")
    whole = run(tmp_path / "whole", *config, **options)
    assert whole.names == {"andon"}
    last = whole.rows[-1][0]
    assert last > 2, "the fault is to be slow, or nothing is shown"
    stop = last - 1
    first = run(tmp_path / "part", *config, **options | {"steps": stop})
    assert first.error is None
    kept = {"store": first.store, "before": first.rows}
    again = run(tmp_path / "part", *config, **options, **kept)
    assert [step for step, _ in again.rows] == [last]
    assert again.panel.found == whole.panel.found
    assert untimed(again.rows[-1]) == untimed(whole.rows[-1])


def untimed(row):
    return {name: x for name, x in row[1].items() if not name.startswith("time/")}


def test_a_run_that_was_stopped_stops_again_until_something_is_changed(tmp_path):
    options = {"compare": faulty.better_share, **UPSIDE_DOWN}
    first = run(tmp_path, "off=[canary]", **options)
    kept = {"store": first.store, "before": first.rows}
    again = run(tmp_path, "off=[canary]", **options, **kept)
    assert isinstance(again.error, GuardError) and not again.rows  # not one update more
    assert str(again.error) == str(first.error)
    on = run(tmp_path, "off=[canary]", "warn=[andon]", **options, **kept)
    assert on.error is None and on.rows[-1][0] == 6
    assert on.panel.status()["andon"].startswith("only warns; 5 updates, 2 to 6")


def test_a_changed_program_is_tested_again_when_a_run_is_resumed(tmp_path):
    """The signs are tested by every process, not only by the one that begins the run."""
    first = run(tmp_path, steps=2)
    assert first.error is None
    flipped = faulty.with_signs(kl=-1)
    again = run(tmp_path, token_rewards=flipped, store=first.store, before=first.rows)
    assert again.names == {"sign_test"} and not again.rows


def test_warnings_of_before_are_known_after_a_resume(tmp_path):
    options = {"optimizer": optax.sgd(-2.0)}
    whole = run(tmp_path / "a", "warn=[direction]", **options)
    first = run(tmp_path / "b", "warn=[direction]", steps=3, **options)
    kept = {"store": first.store, "before": first.rows}
    again = run(tmp_path / "b", "warn=[direction]", **options, **kept)
    assert again.panel.status() == whole.panel.status()
    assert "direction" in whole.names
