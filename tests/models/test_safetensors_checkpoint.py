from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece_model import train

from asgl.errors import ModelError
from asgl.models.layout import expected_shapes
from asgl.models.rope import rope_table
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint
from tiny import CONFIG, IM_END, tiny_config, tiny_directory, tiny_weights, vocabulary


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_tensors_in_the_dtype_of_the_file(
    tmp_path: Path, shards: int, dtype: torch.dtype
) -> None:
    checkpoint = SafetensorsCheckpoint(
        tiny_directory(tmp_path / "tiny", shards=shards, dtype=dtype, tie_word_embeddings=False)
    )
    weights = tiny_weights(tiny_config(tie_word_embeddings=False))
    for name, shape in expected_shapes(checkpoint.config).items():
        tensor = checkpoint.tensor(name)
        assert tuple(tensor.shape) == shape
        assert tensor.dtype == dtype
    assert torch.equal(
        checkpoint.tensor("layers.1.q"), weights["model.layers.1.self_attn.q_proj.weight"].to(dtype)
    )
    assert torch.equal(checkpoint.tensor("head"), weights["lm_head.weight"].to(dtype))
    assert checkpoint.name == "tiny"
    checkpoint.close()


def edited(path: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_attention_heads": 0}, "heads is 0"),
        ({"num_hidden_layers": -1}, "layers is -1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quant_method is None"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"rms_norm_eps": 0.0}, "norm_eps is 0"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
    ],
)
def test_a_config_that_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = edited(
        tiny_directory(tmp_path / "tiny"), "config.json", lambda config: config.update(changes)
    )
    with pytest.raises(ModelError, match=rf"config\.json: .*{message}"):
        SafetensorsCheckpoint(path)


def test_tensors_that_are_missing_or_would_be_ignored(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny")
    weights = load_file(path / "model.safetensors")
    removed = {
        name: weight
        for name, weight in weights.items()
        if name != "model.layers.0.mlp.up_proj.weight"
    }
    save_file(removed, path / "model.safetensors")
    with pytest.raises(
        ModelError,
        match=r"tensor 'model\.layers\.0\.mlp\.up_proj\.weight' is missing",
    ):
        SafetensorsCheckpoint(path)
    save_file(
        {**weights, "model.layers.0.self_attn.o_proj.bias": torch.zeros(64)},
        path / "model.safetensors",
    )
    with pytest.raises(
        ModelError, match=r"'model\.layers\.0\.self_attn\.o_proj\.bias' is of no use"
    ):
        SafetensorsCheckpoint(path)
    save_file({**weights, "model.norm.weight": torch.zeros(63)}, path / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"'model\.norm\.weight' has shape \[63\], where .* needs \[64\]"
    ):
        SafetensorsCheckpoint(path).tensor("norm")
    save_file(
        {**weights, "model.norm.weight": torch.zeros(64, dtype=torch.int8)},
        path / "model.safetensors",
    )
    with pytest.raises(ModelError, match=r"torch\.int8"):
        SafetensorsCheckpoint(path).tensor("norm")


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny")
    whole = (path / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 64):
        (path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.safetensors: not a whole safetensors file"):
            SafetensorsCheckpoint(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        SafetensorsCheckpoint(path)
    (path / "model.safetensors").write_bytes(whole)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"tokenizer\.json: not a tokenizer\.json that can be read"
    ):
        SafetensorsCheckpoint(path)
    (path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json and no tokenizer\.model"):
        SafetensorsCheckpoint(path)
    (path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: not a JSON object"):
        SafetensorsCheckpoint(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        SafetensorsCheckpoint(path)
    (path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        SafetensorsCheckpoint(path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "does not map"),
        ({"model.norm.weight": "../model.safetensors"}, "does not map"),
        ({"model.norm.weight": 3}, "does not map"),
        ({"no.such": "model-00001-of-00002.safetensors"}, "'no.such' is in none of the files"),
        ({"a": "model-00003-of-00002.safetensors"}, "00003-of-00002.safetensors: .* not there"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, weight_map: Any, message: str) -> None:
    path = tiny_directory(tmp_path / "tiny", shards=2)
    edited(path, "model.safetensors.index.json", lambda index: index.update(weight_map=weight_map))
    with pytest.raises(ModelError, match=message):
        SafetensorsCheckpoint(path)


def weights_of(path: Path) -> tuple[torch.Tensor, ...]:
    """What asgl and transformers take for the norm and the head of the model: the same."""
    checkpoint = SafetensorsCheckpoint(path)
    found = (
        checkpoint.tensor("norm"),
        checkpoint.tensor("embedding" if checkpoint.config.tied_head else "head"),
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(found[0], theirs.model.norm.weight)
    assert torch.equal(found[1], theirs.lm_head.weight)
    return found


def test_a_head_is_tied_as_transformers_ties_it(tmp_path: Path) -> None:
    """A head in the files is used, whatever the config says; without one it must say "tied"."""
    tied, untied = tiny_directory(tmp_path / "tied"), tmp_path / "untied"
    weights = load_file(tied / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    assert torch.equal(weights_of(tied)[1], embedding)
    save_file({**weights, "lm_head.weight": embedding.clone()}, tied / "model.safetensors")
    assert torch.equal(weights_of(tied)[1], embedding)
    assert SafetensorsCheckpoint(tied).config.tied_head
    save_file({**weights, "lm_head.weight": embedding + 1}, tied / "model.safetensors")
    assert torch.equal(weights_of(tied)[1], embedding + 1)
    save_file({**weights, "lm_head.weight": embedding.bfloat16()}, tied / "model.safetensors")
    assert torch.equal(SafetensorsCheckpoint(tied).tensor("head"), embedding.bfloat16())

    tiny_directory(untied, tie_word_embeddings=False)
    assert not torch.equal(weights_of(untied)[1], embedding)
    save_file(weights, untied / "model.safetensors")
    for say in (False, None):  # transformers' default is False
        edited(
            untied, "config.json", lambda config, say=say: config.update(tie_word_embeddings=say)
        )
        with pytest.raises(
            ModelError, match=r"'lm_head\.weight' is missing; .*tie_word_embeddings"
        ):
            SafetensorsCheckpoint(untied)


def test_one_file_wins_over_an_index_beside_it(tmp_path: Path) -> None:
    """As in transformers: old shards beside a newer file, and an index whose shards are gone."""
    path = tiny_directory(tmp_path / "tiny", shards=2, seed=1)
    old = weights_of(path)
    new = load_file(tiny_directory(tmp_path / "new", seed=2) / "model.safetensors")
    save_file(new, path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(weights_of(path)[0], new["model.norm.weight"])
    assert not torch.equal(old[0], new["model.norm.weight"])
    for shard in path.glob("model-*.safetensors"):
        shard.unlink()
    assert torch.equal(weights_of(path)[0], new["model.norm.weight"])
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"00001-of-00002\.safetensors: .*index\.json names this"):
        SafetensorsCheckpoint(path)


def test_shards_of_another_model_beside_those_of_the_index(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny", shards=3, seed=1)
    right = weights_of(path)
    other = tiny_directory(tmp_path / "other", shards=2, seed=2)
    for shard in other.glob("model-*.safetensors"):
        shard.rename(path / shard.name)
    assert all(map(torch.equal, weights_of(path), right))


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny", shards=2)
    norm = {"model.norm.weight": torch.zeros(64)}
    save_file(norm, path / "zz.safetensors")
    SafetensorsCheckpoint(path)  # the index does not name it
    (path / "model.safetensors.index.json").rename(path / "gone.json")
    with pytest.raises(
        ModelError, match=r"zz\.safetensors: tensor 'model\.norm\.weight' is in model-0000.*delete"
    ):
        SafetensorsCheckpoint(path)
    (path / "gone.json").rename(path / "model.safetensors.index.json")
    edited(
        path,
        "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"model.norm.weight": "zz.safetensors"}),
    )
    with pytest.raises(ModelError, match=r"zz\.safetensors: tensor 'model\.norm\.weight' is in"):
        SafetensorsCheckpoint(path)


def test_shards_without_an_index(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny", shards=3, tie_word_embeddings=False)
    (path / "model.safetensors.index.json").unlink()
    assert SafetensorsCheckpoint(path).tensor("head").shape == (288, 64)
    for shard in sorted(path.glob("model-*.safetensors")):
        content = shard.read_bytes()
        shard.unlink()
        with pytest.raises(ModelError, match=r"missing; (a file|it is not a whole model)"):
            SafetensorsCheckpoint(path)
        shard.write_bytes(content)


def test_an_adapter_that_would_be_left_out(tmp_path: Path) -> None:
    """transformers would apply it."""
    path = tiny_directory(tmp_path / "tiny")
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json: .* merge it"):
        SafetensorsCheckpoint(path)


KEYS = [*sorted(CONFIG), "rope_scaling", "rope_parameters", "partial_rotary_factor", "x"]
ROPE = ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor",
        "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "attention_factor", "truncate"]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 10**400, 1e300, 5e-324, float("nan"), "llama", "yarn"]),
    st.sampled_from(["llama3", "linear", [], [1], {}, {"a": 1}, float("inf")]),
    st.integers(-4, 4000),
    st.floats(-10, 100),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    top=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    rope=st.dictionaries(st.sampled_from(ROPE), VALUES, max_size=6),
    kind=st.sampled_from(["yarn", "llama3", "linear", "dynamic"]),
)
def test_no_config_raises_anything_but_a_model_error(
    tmp_path: Path, top: dict[str, Any], rope: dict[str, Any], kind: str
) -> None:
    path = tmp_path / "tiny"
    if not path.exists():
        tiny_directory(path)
    content = {**tiny_config(), "rope_scaling": {"rope_type": kind, **rope}, **top}
    (path / "config.json").write_text(json.dumps(content))
    with contextlib.suppress(ModelError):
        config = SafetensorsCheckpoint(path).config
        assert rope_table(config.rope, 10).isfinite().all()


def test_a_panic_of_the_tokenizers_library(tmp_path: Path) -> None:
    """It raises past `except Exception` for a merge that is longer than any token."""
    path = tiny_directory(tmp_path / "tiny")
    edited(
        path,
        "tokenizer.json",
        lambda content: content["model"]["merges"].append("the the"),
    )
    with pytest.raises(ModelError, match="tokenizer"):
        SafetensorsCheckpoint(path)


def test_end_tokens_and_templates_from_all_their_places(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny", eos_token_id=[65, 66], chat_template=None)
    (path / "generation_config.json").write_text('{"eos_token_id": 67}')
    checkpoint = SafetensorsCheckpoint(path)
    tokens, _ = vocabulary()
    assert {65, 66, 67, tokens.index(IM_END)} <= set(checkpoint.tokenizer.end_tokens)
    assert checkpoint.chat_template is None

    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    edited(path, "tokenizer_config.json", lambda settings: settings.update(chat_template=named))
    template = SafetensorsCheckpoint(path).chat_template
    assert template is not None
    assert template.source == "yes"
    (path / "chat_template.jinja").write_text("file")
    template = SafetensorsCheckpoint(path).chat_template
    assert template is not None
    assert template.source == "file"


def test_a_sentencepiece_model_in_the_directory(tmp_path: Path) -> None:
    path = tiny_directory(tmp_path / "tiny", vocab_size=400)
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(train(vocab_size=390))
    added = {"395": {"content": "<|im_end|>", "special": True}}
    edited(
        path,
        "tokenizer_config.json",
        lambda settings: settings.update(added_tokens_decoder=added, add_bos_token=True),
    )
    tokenizer = SafetensorsCheckpoint(path).tokenizer
    assert tokenizer.vocabulary == 400
    assert tokenizer.adds_bos
    assert tokenizer.special_tokens["<|im_end|>"] == 395
    assert 395 in tokenizer.end_tokens
    assert 395 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.decode(tokenizer.encode("a small thing")) == "a small thing"
