from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from asgl.errors import ModelError
from asgl.models.config import QKV, ModelConfig, Rope
from asgl.models.layout import check_config, check_tensor, expected_shapes

CONFIG = ModelConfig("llama", 2, 64, 96, 4, 2, 16, 288, 512, Rope(1e4, 16), 1e-5, True)
PATH = Path("some.file")


def test_shapes() -> None:
    shapes = expected_shapes(CONFIG)
    assert len(shapes) == 2 + 2 * 9
    assert shapes["layers.1.q"] == (64, 64)
    assert shapes["layers.1.k"] == shapes["layers.0.v"] == (32, 64)
    assert shapes["layers.0.down"] == (64, 96)
    assert "head" not in shapes
    assert expected_shapes(dataclasses.replace(CONFIG, tied_head=False))["head"] == (288, 64)
    biased = expected_shapes(dataclasses.replace(CONFIG, biases=QKV))
    assert (biased["layers.0.q_bias"], biased["layers.0.k_bias"], biased["layers.0.v_bias"]) == (
        (64,),
        (32,),
        (32,),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"hidden_size": 1 << 31}, "hidden_size is 2147483648"),
        ({"heads": True}, "heads is True"),
        ({"vocabulary": 1.5}, "vocabulary is 1.5"),
        ({"kv_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, "15 dimensions"),
        ({"layers": 10_001}, "10001 layers"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope": Rope(float("inf"), 16)}, "rope_theta is inf"),
    ],
)
def test_numbers_that_no_model_has(changes: dict[str, Any], message: str) -> None:
    assert check_config(PATH, CONFIG) is CONFIG
    with pytest.raises(ModelError, match=rf"some\.file: .*{message}"):
        check_config(PATH, dataclasses.replace(CONFIG, **changes))


def test_a_tensor_of_another_shape() -> None:
    check_tensor(PATH, "norm", torch.zeros(64), (64,))
    with pytest.raises(
        ModelError,
        match=r"some\.file: tensor 'norm' has shape \[63\], where the model's config needs \[64\]",
    ):
        check_tensor(PATH, "norm", torch.zeros(63), (64,))
