"""Every loss and estimator, as plain functions: arrays in, float32 arrays out, nothing reduced.

    from jaxrlhf.losses import masked, policy

    loss = masked.mean(policy.clipped_surrogate(new, old, advantages, clip_range=0.2), mask)

Needs jax and chex only, never compiles: call it inside your own `jit`, `vmap` or `shard_map`.
"""

from jaxrlhf.losses import (
    advantages,
    confidence,
    divergences,
    elo,
    log_probs,
    masked,
    policy,
    preference,
    ratings,
    supervised,
)

__all__ = [
    "advantages",
    "confidence",
    "divergences",
    "elo",
    "log_probs",
    "masked",
    "policy",
    "preference",
    "ratings",
    "supervised",
]
