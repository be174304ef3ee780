"""`jaxrlhf bench`: a whole run at toy size, and its arithmetic against counts by hand."""

import json

import numpy as np
import pytest

from jaxrlhf import hardware, rewards
from jaxrlhf.models import transformer_config
from jaxrlhf.recipes import bench, flops

SIZES = {"vocab_size": 10, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_model": 4}
MODEL = transformer_config("llama", **SIZES, d_ff=3, max_positions=8)


def test_a_run_writes_what_it_measured(tmp_path, monkeypatch):
    rates = hardware.Rates(1e9, 1e9, True)
    monkeypatch.setattr(hardware, "rates", lambda: rates)
    words = "hidden=8 heads=2 layers=1 vocab=16 batch_size=2 prompt_length=2 response_length=3"
    words += f" ppo_epochs=2 steps=2 warmup=1 reward=token json_file={tmp_path}/out.json"
    found = bench.run(bench.BenchConfig.load(None, words.split()))
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["summary"] == found and len(kept["steps"]) == 2
    last = kept["steps"][1]
    # The warm-up is left out, and nothing compiles after it.
    assert found["step_cpu_s"] == last["step_cpu_s"] and last["compile_s"] == 0
    assert found["compile_s"] == kept["steps"][0]["compile_s"] > 0
    phases = sum(last[f"{phase}_s"] for phase in bench.PHASES)
    assert 0 < phases <= last["step_s"]
    assert found["update_fraction"] * 1e9 * found["update_cpu_s"] == pytest.approx(
        found["update_flops"]
    )
    # The compiler counts one optimiser step, all operations: not fewer than its products.
    assert found["compiler_flops_an_optimizer_step"] > found["update_flops"] / 2


def test_projections_of_a_layer():
    # k and v: 4 x 2 each; q and o: 4 x 4 each; gate, up and down: 4 x 3 each
    assert flops.projections(MODEL) == (16, 32 + 36)


def test_needed_operations_of_a_forward_pass():
    # 3 tokens, the last 2 read. The first layer: 3 tokens by 2 * 84, and 1 + 2 + 3 pairs by
    # 4 * 2 heads * 2 columns. The last: keys and values of 3, all else of 2, and 2 + 3 pairs.
    first, last = 3 * 2 * 84 + 6 * 16, 3 * 2 * 16 + 2 * 2 * 68 + 5 * 16
    body = flops.forward(MODEL, rows=5, columns=3, read=2, head=False)
    assert body == 5 * (first + last)
    # The head: 2 tokens by 4 x 10.
    assert flops.forward(MODEL, rows=5, columns=3, read=2) == body + 5 * 2 * 2 * 40
    whole = flops.update(MODEL, rows=5, prompt=1, new=2, epochs=4, shared=False)
    assert whole == 3 * 4 * (2 * body + 5 * 2 * 2 * 40)


def test_needed_operations_of_sampling():
    # A prompt of 2 and 3 new tokens: the last is not read. Two steps see 3 and 4 columns.
    step = 2 * (2 * 84) + 2 * 40
    later = 2 * step + 2 * 16 * (3 + 4)
    prompt = flops.forward(MODEL, rows=1, columns=2, read=1)
    assert flops.generate(MODEL, rows=1, prompt=2, new=3) == prompt + later


def test_bytes_read_for_a_token():
    # One layer of 4 * 8^2 + 3 * 8 * 32 weights and a head of 8 x 16, 4 bytes each; a cache of
    # 2 rows, 2 + 4 / 2 columns, keys and values of width 8.
    words = "hidden=8 heads=2 layers=1 vocab=16 batch_size=2 prompt_length=2 response_length=4"
    config = bench.BenchConfig.load(None, words.split())
    assert bench.step_bytes(config) == 4 * (256 + 768 + 128 + 2 * 2 * 4 * 8)


def test_the_token_reward_and_its_prompts():
    tokens = np.array([[7, 7, 2, 7], [1, 3, 7, 7]])
    score = bench.share_of(7)(rewards.Rollout(tokens, tokens > 0, 2))
    assert score.tolist() == [5.0, 10.0]
    config = bench.BenchConfig(vocab=16, batch_size=64)
    seen = np.unique(next(bench.prompts(config))["prompt_tokens"])
    assert seen.tolist() == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]


def test_measured_rates_are_those_of_some_machine():
    assert 1e8 < hardware.matrix_rate(width=128, seconds=0.01) < 1e14
    assert 1e7 < hardware.read_rate(size=2**20, seconds=0.01) < 1e14
