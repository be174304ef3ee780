"""Language models as plain functions over plain dicts of arrays; flax stays inside this package."""

from jaxrlhf.models.config import FAMILIES, TransformerConfig, transformer_config
from jaxrlhf.models.heads import Classifier, ScalarModel, make_classifier, make_scalar_model
from jaxrlhf.models.lora import Lora
from jaxrlhf.models.transformer import LM, PARAM_AXES, Cache, Params, make_lm

__all__ = [
    "FAMILIES",
    "LM",
    "PARAM_AXES",
    "Cache",
    "Classifier",
    "Lora",
    "Params",
    "ScalarModel",
    "TransformerConfig",
    "make_classifier",
    "make_lm",
    "make_scalar_model",
    "transformer_config",
]
