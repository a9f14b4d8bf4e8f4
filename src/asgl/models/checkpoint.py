"""What a loader gives: the config, the tokenizer, and tensors under asgl's own names.

embedding                          [vocabulary, d]
layers.{i}.attention_norm          [d]
layers.{i}.q / .k / .v             [heads * head_dim, d] / [kv_heads * head_dim, d]; each head's
                                   rows in the order of a rope that rotates its two halves
layers.{i}.q_bias / .k_bias / .v_bias   [rows], only if `config.attention_bias`
layers.{i}.o                       [d, heads * head_dim]
layers.{i}.mlp_norm                [d]
layers.{i}.gate / .up / .down      [f, d] / [f, d] / [d, f]
norm                               [d]
head                               [vocabulary, d], unless `config.tied_head`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from asgl.kernels.quantized import QuantizedTensor
    from asgl.models.chat_template import ChatTemplate
    from asgl.models.config import ModelConfig
    from asgl.models.tokenizer import Tokenizer
    from asgl.sampling import SamplingParams


class Checkpoint(Protocol):
    """An opened model. Tensors are read when asked for; dense ones keep the dtype of the file."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    """None if the model has none."""
    sampling: SamplingParams
    """What the model's makers recommend; unset where they say nothing."""

    def tensor(self, name: str) -> Tensor | QuantizedTensor:
        """The tensor of that name. ModelError if the file lacks it or its shape is not what the
        config says."""
        ...

    def raw(self) -> Iterator[tuple[str, memoryview]]:
        """For each tensor of the files, sorted by name: its name, type and shape as one text, and
        its bytes as the file has them. The bytes are no copy: release a view before `close`."""
        ...

    def close(self) -> None:
        """Lets go of the files. Tensors given out before may no longer be used."""
        ...
