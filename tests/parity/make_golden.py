"""Write `tests/golden/`: tiny models of torch `transformers` and what they compute.

    python tests/parity/make_golden.py     # in an environment with the `parity` extra

One folder a case: an ordinary Hugging Face folder, and `expected.npz` with `tokens` [2, 20],
`logits` [2, 20, V], `prompts` [2, P] and `continuation` [2, N], the greedy one. The ordinary tests
read them without torch (`tests/golden/test_golden.py`).
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from torch_models import BY_LENGTH, CASES, forget, greedy, logits, save, some_tokens, torch_model

GOLDEN = Path(__file__).parents[1] / "golden"
KEEP = ("config.json", "model.safetensors", "expected.npz")


def make(case: str) -> None:
    """One folder, for the first seed whose greedy continuations are worth comparing."""
    folder = GOLDEN / case
    shutil.rmtree(folder, ignore_errors=True)
    save(case, folder)
    for path in folder.iterdir():
        path.chmod(0o644) if path.name in KEEP else path.unlink()
    for seed in range(100):
        expected = computed(case, some_tokens(2, 20, seed))
        continuation = expected["continuation"]
        lead = smallest_lead(case, expected["prompts"], continuation)
        distinct = min(len(set(row)) for row in continuation.tolist())
        if lead > 2e-3 and distinct >= 4:
            break
    else:
        raise SystemExit(f"{case}: every continuation has a near tie or repeats itself")
    np.savez(folder / "expected.npz", **expected)
    print(f"{case}: seed {seed}, least lead {lead:.4f}, {distinct} distinct tokens at least")


def computed(case: str, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What `expected.npz` holds."""
    model, new = torch_model(case), 24
    prompts = tokens[:, :8]
    if case == "llama_longrope":
        prompts = tokens  # past the change, so that all of it is on one side
    if case == "llama_dynamic":
        new = BY_LENGTH[case] - 8
    forget(model)
    scores = logits(model, tokens, np.ones(tokens.shape, bool))
    forget(model)
    continuation = greedy(model, prompts, np.ones(prompts.shape, bool), new)
    return {"tokens": tokens, "logits": scores, "prompts": prompts, "continuation": continuation}


def smallest_lead(case: str, prompts: np.ndarray, continuation: np.ndarray) -> float:
    """By how much the greedy token leads the second; near a tie, rounding decides."""
    tokens = np.concatenate([prompts, continuation], axis=1)
    forget(torch_model(case))
    scores = logits(torch_model(case), tokens, np.ones(tokens.shape, bool))
    top = np.sort(scores[:, prompts.shape[1] - 1 : -1], axis=-1)
    return float((top[..., -1] - top[..., -2]).min())


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name)
