"""What is computed is what transformers computes; what is not is refused, by name.

For every causal language model class of the installed transformers: a tiny model with all
parameters random, saved by transformers itself. There is no third outcome.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from llama_oracle import all_logprobs, logprobs
from steps import TINY
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from asgl.errors import ModelError
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.models.architectures import ARCHITECTURES, architecture
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.registry import open_checkpoint
from asgl.models.transformer import Transformer
from tiny import tiny_directory, tiny_gguf

VOCABULARY = 288
TOKENS = torch.randint(0, VOCABULARY, (100,), generator=torch.Generator().manual_seed(4)).tolist()
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "pad_token_id": None,
}
"""Sizes by the names that transformers' configs have for them."""
CONFIGS: dict[str, type[Any]] = {
    config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING
}


OF_DIRECTORIES = [name for name, page in ARCHITECTURES.items() if page.hugging_face]
LEFT_OUT = ((), ("num_heads", "n_heads", "head_dim"), tuple(set(SMALL) - {"vocab_size"}))
"""Sizes that some configs derive from others, or that do not fit together."""


def small_sizes(config: Any, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of the small sizes those that the config has a name for; of the configs inside it, too."""
    theirs = {**vars(config), **type(config).attribute_map}
    sizes = {name: size for name, size in SMALL.items() if name in theirs and name not in left_out}
    inside = {
        name: small_sizes(value, left_out)
        for name, value in vars(config).items()
        if isinstance(value, PreTrainedConfig)
    }
    return {**sizes, **inside}


def any_model(kind: type[Any]) -> Any:
    """A small random model of that class of configs; None if none can be built."""
    for left_out in LEFT_OUT:
        # a package is missing, or sizes do not fit together: exceptions of many kinds
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            if model := random_model(kind(**small_sizes(kind(), left_out))):
                return model
    return None


def random_model(config: Any) -> Any:
    """A model of that config in float32, every parameter random: biases that are zero and norms
    that are one would hide what was left out. None if it would be large."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if sum(parameter.numel() for parameter in model.parameters()) > 4e6:
        return None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.5 + 0.3 * noise)
            else:
                parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
    return model.eval()


def saved(path: Path, model: Any, **settings: Any) -> Path:
    """A directory of the model with a tokenizer, and in its config.json these settings too."""
    tiny_directory(path)
    for file in ("model.safetensors", "config.json"):
        (path / file).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside transformers
        model.save_pretrained(path)
    return edited(path, **settings)


def edited(path: Path, **settings: Any) -> Path:
    """The directory with these settings in its config.json; a value of ... removes one."""
    kept = json.loads((path / "config.json").read_text()) | settings
    kept = {key: value for key, value in kept.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(kept))
    return path


def agrees(path: Path) -> None:
    """Asserts that asgl has the log-probabilities of transformers, in float32."""
    theirs = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    checkpoint = open_checkpoint(path)
    found = all_logprobs(SerialRunner(checkpoint, ReferenceKernels(), 200), TOKENS)
    expected = logprobs(theirs.eval(), TOKENS)
    assert expected.amax(dim=1).mean() > -4.5  # a flat distribution would agree with anything
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def agrees_or_is_refused(path: Path) -> str:
    """Asserts the one or the other; the message of the refusal, empty if it agrees."""
    try:
        open_checkpoint(path).close()
    except ModelError as error:
        return str(error)
    agrees(path)
    return ""


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_transformers_is_computed_or_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    path = tiny_directory(tmp_path / "model", model_type=name)
    with warnings.catch_warnings(), contextlib.suppress(StrictDataclassClassValidationError):
        warnings.simplefilter("ignore")
        CONFIGS[name]().save_pretrained(path)  # the defaults of some classes are not valid
    if name not in OF_DIRECTORIES:
        with pytest.raises(
            ModelError,
            match=rf"model_type is '{name}': .* not computed; those computed are .*llama",
        ):
            open_checkpoint(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_model_of_transformers_agrees_or_is_refused(tmp_path: Path) -> None:
    built, computed = 0, set[str]()
    for name, kind in CONFIGS.items():
        model = any_model(kind)
        if model is None:
            continue  # its config alone is tried above
        built += 1
        path = saved(tmp_path / name, model)
        message = agrees_or_is_refused(path)
        assert not message or name in message
        if not message:
            computed.add(name)
        for pretended in OF_DIRECTORIES:
            agrees_or_is_refused(edited(path, model_type=pretended))
    assert built > 150
    assert computed == set(OF_DIRECTORIES)


def tiny_model(name: str, **settings: Any) -> Any:
    """A small random model of that model_type, with a vocabulary for the tiny tokenizer."""
    kind = CONFIGS[name]
    return random_model(kind(**{**small_sizes(kind()), **settings}))


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4,
        "original_max_position_embeddings": 32}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 5e4}  # fmt: skip
WINDOWED = ["full_attention", "sliding_attention"]
COMPUTED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": None}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    ("llama", {"head_dim": None}),
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"pretraining_tp": 2, "attention_dropout": 0.5, "initializer_range": 0.7}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 128}),
    ("mistral", {"sliding_window": 16}),
    ("mistral", {"sliding_window": 1}),
    ("ministral", {"sliding_window": 16}),
    ("ministral", {"sliding_window": 16, "layer_types": WINDOWED}),
    ("ministral3", {"sliding_window": None, "rope_parameters": {
        **YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}}),
    ("ministral3", {"sliding_window": 24, "rope_parameters": {
        **YARN, "llama_4_scaling_beta": 0.1}}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 16}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ("qwen2", {"layer_types": WINDOWED, "use_sliding_window": True, "sliding_window": 16}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0,
               "layer_types": ["full_attention"] * 2}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ("gemma2", {"sliding_window": 16}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0,
                "query_pre_attn_scalar": 3, "attention_bias": True}),
    ("gemma3_text", {"sliding_window": 16, "num_hidden_layers": 6}),
    ("gemma3_text", {"sliding_window": 16, "layer_types": WINDOWED, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e3},
        "sliding_attention": {"rope_type": "default", "rope_theta": 70.0}}}),
    ("gemma3_text", {"final_logit_softcapping": 5.0, "attn_logit_softcapping": None,
                     "tie_word_embeddings": False}),
    ("phi3", {}),
    ("phi3", {"sliding_window": 16, "tie_word_embeddings": True}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0,
                                  "partial_rotary_factor": 0.75}}),
    ("phi3", {"original_max_position_embeddings": 100, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 300.0, "partial_rotary_factor": 0.5,
        "short_factor": [1.1, 1.7], "long_factor": [2.0, 5.0]}}),
    ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 0.5,
                 "residual_multiplier": 0.3}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("smollm3", {"no_rope_layers": [1, 0]}),
    ("smollm3", {"num_hidden_layers": 4, "attention_bias": True}),
    ("smollm3", {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 16}),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    ("olmo3", {"sliding_window": 16}),
    ("olmo3", {"sliding_window": 16, "layer_types": WINDOWED, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 3e3}}}),
    ("qwen2_moe", {"shared_expert_intermediate_size": 24}),
    ("qwen2_moe", {"shared_expert_intermediate_size": 24, "norm_topk_prob": True,
                   "num_hidden_layers": 3, "mlp_only_layers": [1], "qkv_bias": False}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 2, "attention_bias": True}),
    ("gpt_oss", {"sliding_window": 16}),
    ("gpt_oss", {"sliding_window": 16, "num_experts_per_tok": 3, "rope_parameters": {
        **YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), COMPUTED)
def test_models_that_are_computed(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    agrees(saved(tmp_path / "model", tiny_model(name, **settings)))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("mistral", {"sliding_window": 0}, "a sliding window of 0 tokens"),
    ("mistral", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_models_that_are_refused(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        open_checkpoint(saved(tmp_path / "model", tiny_model(name, **settings)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_qk_norm": True}, "use_qk_norm is True"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\]"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"embedding_multiplier": 12}, "embedding_multiplier is 12"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Other"}}, "auto_map is "),
        ({"scale_attention": False}, "scale_attention is False"),
        ({"sliding_window": None, "rope_interleaved": False}, ""),
        ({"torch_dtype": "float16", "unsloth_fixed": True, "temperature": 0.6, "top_k": 3}, ""),
        ({"rope_theta": 500.0, "rope_parameters": ...}, ""),
        ({"rms_norm_eps": ..., "tie_word_embeddings": ..., "rope_parameters": ...}, ""),
    ],
)
def test_a_key_that_is_not_known_stops_the_load(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path / "model", tiny_model("llama"), **settings)
    if not message:
        return agrees(path)
    with pytest.raises(ModelError, match=rf"config\.json: {message}.*'llama'"):
        open_checkpoint(path)
    return None


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 3e3},
        {},
        {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 5e5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["olmo3", "gemma3_text"])
def test_ropes_of_two_kinds_of_layers_as_old_files_have_them(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    kinds = {"sliding_window": 16, "layer_types": WINDOWED}
    path = saved(tmp_path / "model", tiny_model(name, **kinds), rope_parameters=..., **settings)
    agrees(path)
    with pytest.raises(ModelError, match=r"rope_parameters is .* a section for each kind"):
        open_checkpoint(edited(path, rope_parameters={"rope_theta": 3e3}))


def test_a_mistral_that_does_not_mention_its_window(tmp_path: Path) -> None:
    """transformers takes it for 4096."""
    path = saved(tmp_path / "model", tiny_model("mistral", sliding_window=None))
    edited(path, sliding_window=..., max_position_embeddings=8192)
    assert open_checkpoint(path).config.windows == (4096, 4096)
    edited(path, sliding_window=None)
    assert open_checkpoint(path).config.windows == ()
    agrees(path)


@pytest.mark.parametrize(
    ("directory", "gguf"),
    [
        ({}, {}),
        ({"model_type": "qwen2", "mlp_bias": None}, {"model_type": "qwen2"}),
        ({"model_type": "qwen2", "mlp_bias": None}, {"model_type": "llama"}),
    ],
)
def test_gguf_architectures(
    tmp_path: Path, directory: dict[str, Any], gguf: dict[str, Any]
) -> None:
    """Rows of q, k and their biases lie otherwise for llama than for qwen2; llama.cpp takes biases
    of q, k and v for both, if the file has them."""
    biases = {"attention_bias": bool(directory)}
    found, expected = (
        all_logprobs(SerialRunner(open_checkpoint(path), ReferenceKernels(), 200), TOKENS)
        for path in (
            tiny_gguf(tmp_path / "tiny.gguf", **gguf, **biases),
            tiny_directory(tmp_path / "tiny", **directory, **biases),
        )
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma"}, "'gemma': .*those computed are gemma2, .*llama, "),
        ({"general.architecture": "qwen3_moe"}, "'qwen3_moe'"),
        ({"general.architecture": "no-such-thing"}, "'no-such-thing'"),
        ({"general.architecture": "mistral"}, "'mistral'"),
        ({"general.type": "adapter"}, "general.type is 'adapter'"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5"),
        ({"llama.attention.causal": False}, "attention.causal is False"),
        ({"llama.attention.value_length": 8}, "attention.value_length is 8"),
        ({"llama.tensor_data_layout": "other"}, "tensor_data_layout is 'other'"),
        ({"llama.feed_forward_length": [96, 96]}, "feed_forward_length"),
        (
            {
                "llama.vocab_size": 288,
                "llama.expert_count": 0,
                "llama.attention.sliding_window": 512,
                "llama.rope.scaling.finetuned": True,
                "general.file_type": 7,
                "general.type": "model",
                "quantize.imatrix.entries_count": 3,
            },
            "",
        ),
    ],
)
def test_gguf_metadata(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    if not message:
        return GgufCheckpoint(path).close()
    with pytest.raises(ModelError, match=message):
        GgufCheckpoint(path)
    return None


def test_an_architecture_by_name() -> None:
    assert architecture(TINY.architecture).model is Transformer
    with pytest.raises(
        ModelError, match=r"'other' are not computed; those computed are gemma2, .*qwen3, "
    ):
        architecture("other")
