"""How many floating-point operations PPO needs: matrix products only, each counted once.

A product of [m, k] and [k, n] is 2 m k n operations; its backward pass is two such products. Needed
is what the result depends on, whatever a program does beside it:

    a layer      N · 2 · (the projections' parameters), and attention to each earlier token,
                 4 · heads · head_dim a pair
    last layer   keys and values of every token, all else of the tokens that are read
    head         at those tokens

Norms, activations, softmax, sampling and the optimiser are not counted: that is what a fraction of
the matrix rate is to show. Nothing is recomputed (remat costs, but is not needed).
"""

from jaxrlhf.models.config import TransformerConfig


def forward(
    config: TransformerConfig, *, rows: int, columns: int, read: int, head: bool = True
) -> float:
    """Of rows of `columns` tokens, the last `read` of them read, by the output head or not."""
    kv, rest = projections(config)
    pair = 4 * config.num_heads * (config.head_dim or 0)
    every = columns * 2 * (kv + rest) + pair * pairs(columns, columns)
    last = columns * 2 * kv + read * 2 * rest + pair * pairs(columns, read)
    logits = read * 2 * config.d_model * config.vocab_size if head else 0
    return rows * ((config.num_layers - 1) * every + last + logits)


def generate(config: TransformerConfig, *, rows: int, prompt: int, new: int) -> float:
    """Reading the prompts and drawing `new` tokens; the last one is never read."""
    kv, rest = projections(config)
    pair = 4 * config.num_heads * (config.head_dim or 0)
    seen = pairs(prompt + new - 1, new - 1)
    logits = 2 * config.d_model * config.vocab_size
    step = config.num_layers * 2 * (kv + rest) + logits
    later = (new - 1) * step + config.num_layers * pair * seen
    return forward(config, rows=rows, columns=prompt, read=1) + rows * later


def score(config: TransformerConfig, *, rows: int, prompt: int, new: int, reward: bool) -> float:
    """Policy, reference, values, and a reward model of the policy's size."""
    columns = prompt + new
    policy = forward(config, rows=rows, columns=columns, read=new)
    values = forward(config, rows=rows, columns=columns, read=new, head=False)
    scores = forward(config, rows=rows, columns=columns, read=1, head=False)
    return 2 * policy + values + (scores if reward else 0)


def update(
    config: TransformerConfig, *, rows: int, prompt: int, new: int, epochs: int, shared: bool
) -> float:
    """Forward and backward of policy and values; `shared` is a value head on the policy's trunk."""
    columns = prompt + new
    policy = forward(config, rows=rows, columns=columns, read=new)
    values = forward(config, rows=rows, columns=columns, read=new, head=False)
    return 3 * epochs * (policy + (0 if shared else values))


def projections(config: TransformerConfig) -> tuple[int, int]:
    """Parameters of a layer's matrices: of keys and values, and of all the others."""
    kv_heads = config.num_kv_heads or config.num_heads
    head_dim, width = config.head_dim or 0, config.d_model
    gated = config.mlp in ("swiglu", "geglu")
    attention = 2 * width * config.num_heads * head_dim
    return 2 * width * kv_heads * head_dim, attention + (3 if gated else 2) * width * config.d_ff


def pairs(columns: int, read: int) -> int:
    """Pairs of a token among the last `read` and one at or before it."""
    before = columns - read
    return read * before + read * (read + 1) // 2
