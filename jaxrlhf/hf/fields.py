"""Reading config.json field by field, so that nothing that changes the mathematics is overlooked.

The rule: every field must be accounted for.

1. A family's reader takes the fields that it maps, and says of others which value alone it computes
   (`only`); any other value is an error that names field, value and the supported one.
2. `HARMLESS` lists by name what never changes the forward pass of a causal model at evaluation:
   dropouts, token ids, generation defaults, labels, implementations, who wrote it. `FIXED` lists
   what would change it in any family, with the value that does not.
3. Whatever is left is unknown, and an error unless it is null, which in these files means "not
   set". Other values are never waved through, false no more than true: `is_causal: false` turns
   the mask off. Who knows better names the field in `ignore`.

What it does not do: decide what a field means (`families/`).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from jaxrlhf.errors import CheckpointError, nearest

Value = TypeVar("Value", int, float, bool, str)

_HARMLESS_TEXT = """
    _name_or_path name_or_path _commit_hash transformers_version model_type architectures auto_map
    dtype torch_dtype use_cache initializer_range jaxrlhf custom_pipelines

    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id tokenizer_class prefix model_max_length tokenizer_model_max_length

    attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop
    embd_pdrop attn_pdrop classifier_dropout embedding_dropout resid_dropout dropout

    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params
    output_attentions output_hidden_states return_dict torchscript tie_last_hidden_states
    gradient_checkpointing chunk_size_feed_forward pretraining_tp use_bfloat16

    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    attn_implementation _experts_implementation _flash_attn_2_enabled use_flash_attention
    use_flash_attn use_flash_attention_2 cache_implementation transformers.js_config onnx
    unsloth_version unsloth_fixed unsloth_tiled_mlp is_llama_config

    max_length max_new_tokens min_length min_new_tokens do_sample early_stopping num_beams
    temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens num_beam_groups diversity_penalty
"""
HARMLESS = frozenset(_HARMLESS_TEXT.split())

FIXED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
}

_REQUIRED: Any = object()
_LARGEST = 2**28  # of any size; more layers than `_MOST_LAYERS` are a lie
_MOST_LAYERS = 4096


class Fields:
    """A config.json being read; what has been asked for is accounted for."""

    def __init__(self, values: Mapping[str, Any], *, where: str = "config.json"):
        self.where = where
        self._values = values
        self._asked: set[str] = set()

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The raw value of a field. null counts as absent, as in Hugging Face's classes."""
        self._asked.add(name)
        value = self._values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(name, "is missing")
            return default
        return value

    def unset(self, name: str, *, absent: Any, null: Any = None) -> Any:
        """The default of a field whose classes tell null ("off") from absent ("as usual")."""
        return null if name in self._values else absent

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """A whole number from 1 up."""
        value = self.take(name, default)
        most = _MOST_LAYERS if name in ("num_hidden_layers", "n_layer") else _LARGEST
        if value is not default and (type(value) is not int or not 1 <= value <= most):
            raise self.error(name, f"must be a whole number from 1 to {most:,}", value)
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive finite number."""
        value = self.take(name, default)
        return value if value is default else self.positive(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if type(value) is not bool:
            raise self.error(name, "must be true or false", value)
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, Value]) -> Value:
        """What `choices` says of the field's value."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in choices:
            guess = nearest(value, choices)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise self.error(name, f"only {', '.join(choices)} can be computed here{hint}", value)
        return choices[value]

    def only(self, name: str, *supported: Any) -> None:
        """Any other value than these (or null) is an error: it would change the mathematics."""
        value = self.take(name, None)
        if value is not None and not any(_same(value, one) for one in supported):
            rule = " or ".join(_json(one) for one in supported)
            raise self.error(name, f"only {rule} can be computed here", value)

    def layers(self, name: str, choices: Collection[Any], count: int) -> list[Any] | None:
        """A list with one of `choices` for each of `count` layers, or None where it is absent."""
        values = self.take(name, None)
        if values is None:
            return None
        if not isinstance(values, list) or len(values) != count:
            raise self.error(name, f"must list one value for each of {count} layers", values)
        for index, value in enumerate(values):
            if not any(_same(value, choice) for choice in choices):
                allowed = ", ".join(map(_json, choices))
                raise self.error(f"{name}[{index}]", f"only {allowed} can be computed here", value)
        return values

    def finish(self, harmless: Iterable[str] = (), *, ignore: Iterable[str] = ()) -> None:
        """Account for the rest: raise for every field that could change the mathematics."""
        for name, supported in FIXED.items():
            if name not in self._asked and name not in ignore:
                self.only(name, *supported)
        if self._values.get("quantization_config") and "quantization_config" not in ignore:
            raise self.error(
                "quantization_config",
                "quantised weights cannot be read; use the checkpoint they were made from",
            )
        known = {*HARMLESS, *FIXED, *harmless, *ignore, "quantization_config"} | self._asked
        left = {name: v for name, v in self._values.items() if name not in known and v is not None}
        if left:
            shown = ", ".join(f"{_cut(name)} = {_json(value)}" for name, value in left.items())
            raise CheckpointError(
                f"{self.where}: unknown: {_cut(shown, 600)}. A field that is not understood may "
                "change what the model computes. If it does not, remove it or name it in "
                "ignore_fields."
            )

    def positive(self, name: str, value: Any) -> Any:
        """`value` if it is a positive finite number; also for numbers inside a field."""
        if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
            raise self.error(name, "must be a positive number", value)
        return value

    def error(self, name: str, rule: str, value: Any = _REQUIRED) -> CheckpointError:
        shown = "" if value is _REQUIRED else f" = {_json(value)}"
        return CheckpointError(f"{self.where}: {name}{shown}: {rule}")


def _same(a: Any, b: Any) -> bool:
    """Equal, and not merely 1 == True."""
    return type(a) is type(b) and a == b


def _json(value: Any) -> str:
    constants = {True: "true", False: "false"}
    return constants[value] if type(value) is bool else _cut(repr(value))


def _cut(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
