"""One PPO step written out in numpy, float64, one token at a time, from the formulas of the paper.

For `tables.LM_TABLE` with a value head, so that every gradient can be written by hand:

    z = table[x] / τ, x the token before y     log π(y) = z_y − log Σ exp z
    ∂ log π(y) / ∂ table[x]_v = (1[v = y] − π_v) / τ
    H = −Σ π log π                             ∂H / ∂ table[x]_v = −π_v (log π_v + H) / τ
    V = w · table'[x] + b                      table' the value network's own, or the policy's

It shares no code with the package, takes the order of the rows as an argument, and steps by SGD.
Sources: Ziegler et al. 2019 (code), Schulman et al. 2017 eq. 7, Schulman et al. 2016 eq. 16.
"""

import numpy as np


class Sequence:
    """One rollout: previous tokens x, sampled tokens y, and what was recorded with each."""

    def __init__(self, batch, row: int, prompt_length: int):
        end = int(np.sum(batch["mask"][row, prompt_length:]))
        tokens = np.asarray(batch["tokens"])[row, prompt_length - 1 : prompt_length + end]
        self.x, self.y = tokens[:-1], tokens[1:]

        def read(name):
            return np.asarray(batch[name], np.float64)[row, :end]

        self.old, self.ref = read("log_probs"), read("ref_log_probs")
        self.values, self.sampler = read("values"), read("sampler_log_probs")
        self.score = float(batch["scores"][row])
        self.complete = bool(batch["complete"][row])


def log_softmax(z):
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def delivered_scores(sequences, settings, moments=None):
    """Scores after standardising, clipping and the missing-EOS rule, and all scores seen so far."""
    scores = np.array([s.score for s in sequences])
    if settings.normalize_scores:
        moments = np.concatenate([[] if moments is None else moments, scores])
        scores = (scores - moments.mean()) / moments.std()
    if settings.reward_clip is not None:
        scores = np.clip(scores, -settings.reward_clip, settings.reward_clip)
    if settings.missing_eos_penalty is not None:
        for i, s in enumerate(sequences):
            if not s.complete and settings.missing_eos_rule == "replace":
                scores[i] = settings.missing_eos_penalty
            elif not s.complete:
                scores[i] -= settings.missing_eos_penalty
    return scores, moments


def token_rewards(sequences, scores, settings, beta):
    """r_t = −β (ℓ_t − ℓ⁰_t), plus the score at the last token."""
    rewards = []
    for s, score in zip(sequences, scores, strict=True):
        kl = s.old - s.ref if settings.kl_in == "reward" else np.zeros(len(s.y))
        rewards.append(-beta * kl)
        rewards[-1][-1] += score
    return rewards


def estimates(sequences, rewards, settings):
    """δ_t = r_t + γ V_{t+1} − V_t;  A_t = δ_t + γλ A_{t+1};  G_t = A_t + V_t."""
    advantages, returns = [], []
    for s, r in zip(sequences, rewards, strict=True):
        a, after, v = np.zeros(len(r)), 0.0, np.append(s.values, 0.0)
        for t in reversed(range(len(r))):
            after = r[t] + settings.gamma * v[t + 1] - v[t] + settings.gamma * settings.lam * after
            a[t] = after
        advantages.append(a)
        returns.append(a + s.values)
    return advantages, returns


def whiten(parts, *, shift_mean):
    """Mean and population variance over all tokens of a minibatch together."""
    everything = np.concatenate(parts)
    mean, std = everything.mean(), np.sqrt(everything.var() + 1e-8)
    return [(x - mean) / std + (0 if shift_mean else mean) for x in parts]


def learn(params, sequences, scores, settings, beta, temperature, learning_rate):
    """One SGD step on one minibatch: new parameters and metrics."""
    rewards = token_rewards(sequences, scores, settings, beta)
    if settings.whiten_rewards:
        rewards = whiten(rewards, shift_mean=False)
    advantages, returns = estimates(sequences, rewards, settings)
    if settings.whiten_advantages:
        advantages = whiten(advantages, shift_mean=True)
    total = sum(len(s.y) for s in sequences)
    grads = {name: np.zeros_like(x) for name, x in params.items()}
    trunk = "value_table" if "value_table" in params else "table"
    seen = {name: [] for name in ("loss", "entropy", "log_ratio", "value_loss", "moved")}
    eps, eps_value = settings.cliprange, settings.cliprange_value
    eps_value = np.inf if eps_value is None else eps_value
    for s, advantage, goal in zip(sequences, advantages, returns, strict=True):
        for t, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            log_pi = log_softmax(params["table"][x] / temperature)
            pi = np.exp(log_pi)
            d_log_prob = (np.eye(len(pi))[y] - pi) / temperature
            entropy = -np.sum(pi * log_pi)
            d_entropy = -pi * (log_pi + entropy) / temperature

            ratio, a = np.exp(log_pi[y] - s.old[t]), advantage[t]
            plain, cut = -a * ratio, -a * np.clip(ratio, 1 - eps, 1 + eps)
            row = d_log_prob * (plain if plain >= cut else 0.0)
            row -= settings.entropy_coef * d_entropy
            if settings.kl_in == "loss":
                row += beta * (log_pi[y] - s.ref[t]) * d_log_prob

            value = params["kernel"] @ params[trunk][x] + params["bias"]
            error, moved = value - goal[t], value - s.values[t]
            loss = slope = error
            near = s.values[t] + np.clip(moved, -eps_value, eps_value) - goal[t]
            if abs(near) > abs(error) and abs(moved) > eps_value:
                loss, slope = near, 0.0
            slope = settings.vf_coef * slope

            grads["table"][x] += row / total
            grads[trunk][x] += slope * params["kernel"] / total
            grads["kernel"] += slope * params[trunk][x] / total
            grads["bias"] += slope / total
            seen["loss"].append(max(plain, cut))
            seen["entropy"].append(entropy)
            seen["log_ratio"].append(log_pi[y] - s.old[t])
            seen["value_loss"].append(loss**2 / 2)
            seen["moved"].append(abs(moved))
    seen = {name: np.array(x) for name, x in seen.items()}
    ratio = np.exp(seen["log_ratio"])
    metrics = {
        "policy/loss": seen["loss"].mean(),
        "policy/entropy": seen["entropy"].mean(),
        "policy/approx_kl": np.mean(seen["log_ratio"] ** 2) / 2,
        "policy/clip_fraction": np.mean(abs(ratio - 1) > eps),
        "policy/ratio_mean": ratio.mean(),
        "policy/ratio_max": ratio.max(),
        "policy/grad_norm": np.sqrt(sum(np.sum(g**2) for g in grads.values())),
        "value/loss": seen["value_loss"].mean(),
        "value/clip_fraction": np.mean(
            seen["moved"] > (np.inf if eps_value is None else eps_value)
        ),
    }
    return {name: x - learning_rate * grads[name] for name, x in params.items()}, metrics


def rollout_metrics(sequences, scores, settings, beta):
    """The figures of a rollout batch that do not depend on the updates."""
    rewards = token_rewards(sequences, scores, settings, beta)
    _, returns = estimates(sequences, rewards, settings)
    values = np.concatenate([s.values for s in sequences])
    goals, raw = np.concatenate(returns), np.array([s.score for s in sequences])
    k1 = [np.sum(s.old - s.ref) for s in sequences]
    k3 = [np.sum(np.exp(s.ref - s.old) - 1 - (s.ref - s.old)) for s in sequences]
    again = [y in s.y[:t] for s in sequences for t, y in enumerate(s.y)]
    return {
        "objective/kl_k1": np.mean(k1),
        "objective/kl_k3": np.mean(k3),
        "objective/kl_coef": beta,
        "objective/score": raw.mean(),
        "objective/score_std": raw.std(),
        "objective/score_total": np.mean([r.sum() for r in rewards]),
        "value/mean": values.mean(),
        "value/var": values.var(),
        "value/explained_variance": 1 - np.var(goals - values) / np.var(goals),
        "returns/mean": goals.mean(),
        "returns/var": goals.var(),
        "rollout/length": np.mean([len(s.y) for s in sequences]),
        "rollout/eos_rate": np.mean([s.complete for s in sequences]),
        "rollout/repetition": np.mean(again),
        "rollout/sampler_logprob_gap": max(np.max(abs(s.old - s.sampler)) for s in sequences),
    }


def update(params, batch, settings, *, prompt_length, beta, orders, temperature, learning_rate):
    """One call of `Algorithm.update`.

    Args:
      params: `table`, `kernel`, `bias` and, for a separate value network, `value_table`; float64.
      orders: for each epoch, the rows of each minibatch.
    Returns: parameters, the next KL coefficient, metrics.
    """
    rows = range(len(batch["scores"]))
    sequences = [Sequence(batch, row, prompt_length) for row in rows]
    scores, _ = delivered_scores(sequences, settings)
    found = []
    for epoch in orders:
        for order in epoch:
            chosen = [sequences[i] for i in order]
            params, metrics = learn(
                params, chosen, scores[order], settings, beta, temperature, learning_rate
            )
            found.append(metrics)
    metrics = {
        name: (np.max if name.endswith("_max") else np.mean)([m[name] for m in found])
        for name in found[0]
    }
    metrics |= rollout_metrics(sequences, scores, settings, beta)
    next_beta = beta
    if settings.kl_target is not None:
        error = np.clip(metrics["objective/kl_k1"] / settings.kl_target - 1, -0.2, 0.2)
        next_beta = beta * (1 + error * len(sequences) / settings.kl_horizon)
    metrics["rollout/padding"] = 1 - np.mean(batch["mask"])
    return params, next_beta, metrics
