"""jaxrlhf: reinforcement learning from feedback on language models, in JAX."""

__version__ = "0.1.0"
