"""What the contract does not say of the Triton back end: padding, masks, traffic, and what
it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tests.kernels.batches import batch_of, generator, how_to_sample, make_batch, rope_table, rotate
from tests.kernels.triton.access import Monitor
from tests.kernels.triton_bfloat16 import repair

import asgl.kernels.triton.kernels as backend
from asgl.errors import ConfigError
from asgl.kernels.api import Attending
from asgl.kernels.select import make_kernels
from asgl.kernels.triton.kernels import TritonKernels

pytestmark = [pytest.mark.interpret, pytest.mark.timeout(300)]
repair()


@pytest.fixture
def kernels() -> TritonKernels:
    return TritonKernels("cpu", torch.float32)


def test_padding_is_written_nowhere(kernels: TritonKernels, monitor: Monitor) -> None:
    """A negative slot: rows that only fill up a batch of fixed size."""
    batch = batch_of([[3, 5], [9], [9]], [1, 1, 1])
    batch.slots[1:] = -1
    cache = torch.full((2, 10, 2, 16), torch.nan)
    qkv = torch.randn(3, 8 * 16, generator=generator(1))
    q = rotate(kernels, qkv, batch, rope_table(kernels, 64, 16), cache[0], cache[1])
    assert not q.isnan().any()
    written = ~cache.isnan().all(dim=(2, 3))
    assert written.nonzero().tolist() == [[0, 5], [1, 5]]
    assert monitor.launches[0].written["k_cache"] == 2 * 16 * 4


def test_masks_ban_what_a_grammar_does_not_allow(kernels: TritonKernels, monitor: Monitor) -> None:
    m, vocabulary = 3, 1100
    allowed = torch.rand(m, vocabulary, generator=generator(1)) < 0.3
    packed = torch.zeros(m, -(-vocabulary // 32), dtype=torch.int64)
    for token in range(vocabulary):
        packed[:, token // 32] |= allowed[:, token].long() << (token % 32)
    logits = torch.randn(m, vocabulary, generator=generator(2))
    expected = logits.masked_fill(~allowed, -torch.inf)
    words = packed.to(torch.uint32).view(torch.int32)
    kernels.mask_logits(logits, words)
    assert torch.equal(logits, expected)
    greedy = kernels.sample(logits, how_to_sample(kernels, m, temperature=0.0))
    assert torch.equal(greedy, expected.argmax(dim=1))
    # a mask that is shorter than the vocabulary allows nothing beyond its end
    short = torch.zeros(m, vocabulary)
    kernels.mask_logits(short, torch.full((m, 10), -1, dtype=torch.int32))
    assert (short[:, :320] == 0).all()
    assert (short[:, 320:] == -torch.inf).all()


def test_elementwise_kernels_read_and_write_each_element_once(
    kernels: TritonKernels, monitor: Monitor, poisoned: None
) -> None:
    n, d = 5, 72
    hidden, delta, weight = torch.randn(n, d), torch.randn(n, d), torch.randn(d)
    kernels.add_rms_norm(hidden, delta, weight, 1e-5)
    norm = monitor.launches[-1]
    assert norm.read == {"hidden": n * d * 4, "delta": n * d * 4, "weight": n * d * 4}
    assert norm.written == {"hidden": n * d * 4, "out": n * d * 4}
    kernels.gate(torch.randn(n, 2 * d), "silu")
    assert monitor.launches[-1].read == {"gate_up": 2 * n * d * 4}
    assert monitor.launches[-1].written == {"out": n * d * 4}
    batch = batch_of([list(range(n))], [n])
    caches = torch.randn(2, 10, 2, 16)
    rotate(
        kernels, torch.randn(n, 8 * 16), batch, rope_table(kernels, 64, 16), caches[0], caches[1]
    )
    rope = monitor.launches[-1]
    # values are read beside their keys too: what is not finite spoils both
    assert rope.read["qkv"] == n * (8 + 2) * 16 * 4
    assert rope.written == {
        "q_out": n * 4 * 16 * 4,
        "k_cache": n * 2 * 16 * 4,
        "v_cache": n * 2 * 16 * 4,
    }


def test_the_head_reads_its_weight_once_for_64_rows(
    kernels: TritonKernels, monitor: Monitor
) -> None:
    for m, times in ((1, 1), (64, 1), (65, 2)):
        kernels.head(torch.randn(m, 40), torch.randn(300, 40))
        assert monitor.launches[-1].read["weight"] == times * 300 * 40 * 4
        assert monitor.launches[-1].written == {"out": m * 300 * 4}


def test_sampling_reads_the_logits_so_many_times(kernels: TritonKernels, monitor: Monitor) -> None:
    """Greedy once, which is the ideal. A draw adds one pass, top-k and top-p their searches."""
    m, vocabulary = 2, 300
    logits = torch.randn(m, vocabulary, generator=generator(1))
    for passes, how in (
        (1, how_to_sample(kernels, m, temperature=0.0)),
        (1 + 1, how_to_sample(kernels, m)),
        (1 + 1 + 11, how_to_sample(kernels, m, top_k=5)),
        (1 + 1 + 11 + 12, how_to_sample(kernels, m, top_k=5, top_p=0.5)),
        (1 + 1, how_to_sample(kernels, m, min_p=0.1)),
    ):
        kernels.sample(logits.clone(), how)
        assert monitor.launches[-1].read["logits"] == passes * m * vocabulary * 4
        assert monitor.launches[-1].written == {"tokens": m * 8}


def test_masks_and_edits_touch_what_they_change(kernels: TritonKernels, monitor: Monitor) -> None:
    m, vocabulary = 2, 320
    allowed = torch.zeros(m, vocabulary // 32, dtype=torch.int32)
    allowed[1] = -1
    kernels.mask_logits(torch.zeros(m, vocabulary), allowed)
    assert monitor.launches[-1].written == {"logits": vocabulary * 4}  # of the first row alone
    assert monitor.launches[-1].read == {
        "allowed": m * vocabulary * 4
    }  # a word for each token: 32 reads of each, from a cache
    edits = (torch.tensor([0, 1, 1]), torch.tensor([3, 4, 5]), torch.tensor([1.0, 2.0, 3.0]))
    kernels.sample(
        torch.zeros(m, vocabulary), how_to_sample(kernels, m, temperature=0.0, edits=edits)
    )
    assert monitor.launches[-2].read["logits"] == monitor.launches[-2].written["logits"] == 3 * 4


def test_merging_reads_each_partial_result_once(
    kernels: TritonKernels, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not empty, and the weights of all."""
    monkeypatch.setattr(backend.tiles, "decode_splits", lambda *_: 8)
    batch = make_batch(kernels, [(299, 1), (0, 1)])
    k, v = (torch.randn(1500, 2, 16) for _ in range(2))
    kernels.attention(torch.randn(2, 4, 16), k, v, batch, Attending(0.25))
    decode, merge = monitor.launches
    assert merge.read["partial"] == decode.written["partial"]
    assert merge.read["partial_lse"] == decode.written["partial_lse"] == 2 * 8 * 4 * 4
    assert merge.written == {"out": 2 * 4 * 16 * 4}


def test_sampling_stays_in_bounds(kernels: TritonKernels, monitor: Monitor, poisoned: None) -> None:
    """Rows with a stride, an odd vocabulary, edits at its ends."""
    m, vocabulary = 3, 333
    logits = torch.randn(m, vocabulary + 7, generator=generator(1))[:, :vocabulary]
    ends = (torch.tensor([0, 2]), torch.tensor([0, vocabulary - 1]), torch.tensor([2.0, 3.0]))
    how = how_to_sample(kernels, m, key=[0, 5, -1], top_k=5, top_p=0.9, edits=ends, repetition=ends)
    tokens = kernels.sample(logits.contiguous(), how)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    assert {launch.kernel for launch in monitor.launches} == {"edit_kernel", "sample_kernel"}


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
def test_a_row_that_is_no_distribution_gives_no_token(
    kernels: TritonKernels, monitor: Monitor, filters: dict[str, float]
) -> None:
    logits = torch.randn(6, 70, generator=generator(1))
    logits[0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 9] = torch.inf
    logits[3, 69] = torch.nan
    logits[5, 30] = -torch.inf
    for temperature in (0.0, 1.0):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of NaN
            found = kernels.sample(
                logits.clone(),
                how_to_sample(kernels, 6, temperature=temperature, **filters),
            )
        assert found[:4].tolist() == [-1] * 4
        assert ((found[4:] >= 0) & (found[4:] < 70)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float64}, "float32, bfloat16 or float16, not in torch.float64"),
        ({"weights": "int4"}, "none for weights='int4'; use weights='auto'"),
        ({"deterministic": True}, "no deterministic mode"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TritonKernels("cpu", **options)  # type: ignore[arg-type]


def test_chosen_by_name_in_the_interpreter() -> None:
    kernels = make_kernels("triton", "cpu", "float32")
    assert (kernels.name, kernels.device.type, kernels.weights) == ("triton", "cpu", "dense")
    assert make_kernels("auto", "cpu", "float32").name != "triton"
