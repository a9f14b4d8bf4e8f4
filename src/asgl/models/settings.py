"""What a model's file says of the model, key by key, and which keys have been read.

A key that nobody read may change what the model computes. `Settings.finish` stops the load at
such a key, unless its value is known to change nothing: a wrong answer would look like a right one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asgl.errors import ModelError

_GENERATION = """
    bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens temperature top_k top_p typical_p use_cache
"""
_TRAINING = """
    attention_dropout classifier_dropout finetuning_task gradient_checkpointing id2label
    initializer_range label2id num_labels output_router_logits pretraining_tp problem_type
    router_aux_loss_coef router_jitter_noise task_specific_params tf_legacy_loss
"""
_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path architectures attn_implementation cache_implementation
    chunk_size_feed_forward dtype
    max_sequence_length model_max_length model_type name_or_path prefix pruned_heads
    tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
    unsloth_fixed unsloth_version use_bfloat16
"""
HUGGING_FACE_HARMLESS = frozenset((_GENERATION + _TRAINING + _BOOKKEEPING).split())
"""Keys of a config.json that never change the numbers of a forward pass.

`architectures` is among them: transformers, too, chooses the class by model_type.
"""
HUGGING_FACE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
}
"""Keys of every config.json, with the values that mean nothing to a decoder."""
GGUF_HARMLESS = frozenset({"rope.scaling.finetuned", "vocab_size"})
"""Keys below a GGUF file's architecture that never change the numbers of a forward pass."""
GGUF_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (0.0, 32.0),
    "rope.scaling.yarn_beta_slow": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "tensor_data_layout": ("Meta AI original pth",),
}
"""Keys of every GGUF file, with the values that llama.cpp takes for "not there"."""
_REQUIRED = object()


class Settings:
    """The settings of one model.

    path: the file that they are in. architecture: of the model. values: the settings; a value of
    None says nothing. prefix: what the file writes before each key.
    """

    def __init__(
        self, path: Path, architecture: str, values: Mapping[str, Any], prefix: str = ""
    ) -> None:
        self.path, self.architecture = path, architecture
        self._values, self._prefix = values, prefix
        self._read: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._values)

    def mentions(self, key: str) -> bool:
        """Whether the file has the key, even with a value of None."""
        return key in self._values

    def peek(self, key: str) -> Any:
        """The value of that key, which does not count as read; None without one."""
        return self._values.get(key)

    def keys(self) -> list[str]:
        """All keys."""
        return list(self._values)

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        """The int of that key; without one the default, or ModelError if there is none."""
        return self._get(key, int, "an integer", default)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """As `integer`, of an int or a float, which comes as a float."""
        value = self._get(key, (int, float), "a number", default)
        return float(value) if isinstance(value, int) else value

    def positive(self, key: str, default: Any = _REQUIRED) -> float:
        """As `number`, above zero and finite."""
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise self.error(key, "a positive number is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """As `integer`, of a bool."""
        return self._get(key, bool, "true or false", default)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """As `integer`, of a string."""
        return self._get(key, str, "a text", default)

    def items(self, key: str) -> list[Any]:
        """The list of that key; empty without one."""
        return self._get(key, list, "a list", [])

    def section(self, key: str) -> Settings:
        """The settings inside the object of that key; none without one. To be finished apart."""
        values = self._get(key, dict, "an object", {})
        return Settings(self.path, self.architecture, values, f"{self._prefix}{key}.")

    def error(self, key: str, why: str) -> ModelError:
        """An error that names the key, its value and the architecture."""
        value = repr(self._values.get(key))
        shown = value if len(value) <= 60 else value[:60] + "..."
        return ModelError(
            f"{self.path}: {self._prefix}{key} is {shown} "
            f"(architecture {self.architecture!r}): {why}"
        )

    def finish(self, harmless: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """ModelError at a key that was not read, is not `harmless`, and is set to something else
        than what `neutral` says means nothing."""
        for key, value in self._values.items():
            nothing = (None, [], {}, *neutral.get(key, ()))
            if key in self._read or key in harmless or value in nothing:
                continue
            known = " or ".join(repr(value) for value in neutral.get(key, ()))
            raise self.error(
                key,
                f"only {known} can be computed"
                if known
                else "it is not known how to compute with that; if the model does not depend on "
                "it, remove the key",
            )

    def _get(self, key: str, kind: type | tuple[type, ...], what: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.error(key, f"{what} is needed")
            return default
        huge = isinstance(value, int) and not -(1 << 63) <= value < 1 << 63
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or huge:
            raise self.error(key, f"{what} is needed")
        return value
