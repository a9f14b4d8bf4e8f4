from __future__ import annotations

import math
from array import array

import numpy as np
import pytest
import torch

from asgl.execution.sampler import keys, sample, sampling_batch, score
from asgl.kernels import noise
from asgl.kernels.reference import ReferenceKernels
from asgl.plan import INT, SampleRow, ScoreRow
from asgl.sampling import SamplingSpec

CPU = torch.device("cpu")
VOCABULARY = 12


def row(
    spec: SamplingSpec,
    draw: int = 0,
    banned: tuple[int, ...] = (),
    history: list[int] | None = None,
    prompt_length: int = 0,
) -> SampleRow:
    tokens = None if history is None else array(INT, history)
    return SampleRow(0, 1, spec, draw, banned, tokens, prompt_length)


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def kernels() -> ReferenceKernels:
    return ReferenceKernels()


def splitmix(z: int) -> int:
    """The finaliser, in Python's integers."""
    mask = 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


def test_the_finaliser_is_splitmix64s() -> None:
    """The first outputs of the published generator for seed 1234567."""
    state, outputs = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(splitmix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    ("seed", "draw"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 2**31), (123456789, 77)]
)
def test_keys_by_their_definition(seed: int, draw: int) -> None:
    place = splitmix(seed) + (draw + 1) * 0x9E3779B97F4A7C15
    assert int(keys([seed], [draw])[0]) % 2**64 == splitmix(place % 2**64)


def times_of(found: np.ndarray, tokens: list[int]) -> np.ndarray:
    """In (0, 1), if all is well uniformly: [keys, tokens]."""
    return -np.expm1(-noise.times(torch.from_numpy(found), torch.tensor(tokens)).numpy())


@pytest.mark.parametrize("apart", [1, 2, 16, 1024, 4096, 32768])
def test_random_numbers_are_uniform_and_independent(apart: int) -> None:
    """Over seeds, over draws, and between tokens: a chi-square of pairs."""
    count = 100_000
    by_draw, by_seed = keys([5] * count, range(count)), keys(range(count), [3] * count)
    for found in (by_draw, by_seed):
        numbers = times_of(found, [7, 7 + apart])
        for first, second in ((numbers[:-1, 0], numbers[1:, 0]), (numbers[:, 0], numbers[:, 1])):
            pairs, _, _ = np.histogram2d(first, second, bins=16, range=((0, 1), (0, 1)))
            expected = len(first) / 256
            # 255 degrees of freedom: p < 1e-5
            assert ((pairs - expected) ** 2 / expected).sum() < 360


def test_seeds_an_increment_apart_give_unrelated_draws() -> None:
    first = keys([9] * 50, range(50))
    second = keys([(9 + 0x9E3779B97F4A7C15) % 2**64] * 50, range(50))
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    "spec", [SamplingSpec(), SamplingSpec(temperature=0.6), SamplingSpec(top_k=4, temperature=1.5)]
)
def test_frequencies_follow_the_distribution(kernels: ReferenceKernels, spec: SamplingSpec) -> None:
    count = 5000
    one = logits() / 2
    samples = [row(spec._replace(seed=11), draw) for draw in range(count)]
    drawn = [token.token_id for token in sample(kernels, one.repeat(count, 1), samples)]
    expected = torch.softmax(one[0].double() / spec.temperature, dim=0)
    if spec.top_k:
        expected[expected.argsort(descending=True)[spec.top_k :]] = 0
        expected /= expected.sum()
    observed = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY)
    possible = expected > 0
    assert observed[~possible].sum() == 0
    statistic = ((observed - count * expected) ** 2 / (count * expected))[possible].sum()
    assert statistic < 38  # 11 degrees of freedom at most: p < 1e-4


def test_draws_do_not_depend_on_the_batch(kernels: ReferenceKernels) -> None:
    specs = [
        SamplingSpec(seed=3),
        SamplingSpec(temperature=0.0),
        SamplingSpec(seed=4, top_p=0.5, logprobs=2),
        SamplingSpec(seed=5, min_p=0.1, repetition_penalty=1.5),
        SamplingSpec(seed=6, top_k=3, logprobs=0),
    ]
    samples = [
        row(spec, draw=i, banned=(i,), history=[1, 2, i], prompt_length=1)
        for i, spec in enumerate(specs)
    ]
    given = logits(len(specs))
    together = sample(kernels, given.clone(), samples)
    for i in range(len(specs)):
        assert sample(kernels, given[i : i + 1].clone(), samples[i : i + 1]) == together[i : i + 1]
    backwards = sample(kernels, given.flip(0).clone(), samples[::-1])
    assert backwards == together[::-1]


def test_edits_by_hand() -> None:
    spec = SamplingSpec(
        frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((3, 2.0), (7, -1.0))
    )
    how = sampling_batch(
        [row(SamplingSpec()), row(spec, banned=(9, 5), history=[3, 4, 3, 3, 5], prompt_length=2)],
        VOCABULARY,
        CPU,
    )
    assert how.edits is not None
    rows, tokens, added = (part.tolist() for part in how.edits)
    assert rows == [1] * 4
    # generated: 3 twice, 5 once; 4 is prompt
    assert dict(zip(tokens, added, strict=True)) == {
        3: 2.0 - 2 * 0.5 - 0.25,
        5: -math.inf,
        7: -1.0,
        9: -math.inf,
    }
    assert how.repetition is None


def test_repetition_covers_prompt_and_output() -> None:
    sampled = row(SamplingSpec(repetition_penalty=1.3), history=[3, 4, 3, 8], prompt_length=2)
    how = sampling_batch([sampled], VOCABULARY, CPU)
    assert how.repetition is not None
    rows, tokens, penalties = how.repetition
    assert (rows.tolist(), tokens.tolist()) == ([0, 0, 0], [3, 4, 8])
    assert penalties.tolist() == pytest.approx([1.3] * 3)
    assert how.edits is None


def test_penalties_decide_as_by_hand(kernels: ReferenceKernels) -> None:
    one = torch.tensor([[2.0, 1.9, 1.0, -1.0]])
    greedy = SamplingSpec(temperature=0.0)

    def best(spec: SamplingSpec, history: list[int], prompt_length: int = 0) -> int:
        return sample(
            kernels, one.clone(), [row(spec, history=history, prompt_length=prompt_length)]
        )[0].token_id

    assert best(greedy, []) == 0
    assert best(greedy._replace(presence_penalty=0.2), [0]) == 1
    assert best(greedy._replace(presence_penalty=0.2), [0], prompt_length=1) == 0
    assert best(greedy._replace(frequency_penalty=0.04), [0, 0]) == 0
    assert best(greedy._replace(frequency_penalty=0.04), [0, 0, 0]) == 1
    assert best(greedy._replace(repetition_penalty=1.1), [0], prompt_length=1) == 1
    assert best(greedy._replace(logit_bias=((3, 3.5),)), []) == 3
    assert best(greedy._replace(logit_bias=((0, -1e30), (1, -1e30))), []) == 2


def test_banned_tokens_are_never_sampled(kernels: ReferenceKernels) -> None:
    one = torch.tensor([[9.0, 8.0, 0.0, 0.0]])
    for spec in (
        SamplingSpec(temperature=0.0),
        SamplingSpec(temperature=5.0),
        SamplingSpec(logit_bias=((0, 100.0),)),
    ):
        for draw in range(30):
            token = sample(kernels, one.clone(), [row(spec, draw, banned=(0, 1))])[0].token_id
            assert token in (2, 3)


def test_tokens_outside_the_vocabulary_are_left_out() -> None:
    sampled = row(SamplingSpec(logit_bias=((VOCABULARY, 1.0), (1, 1.0))), banned=(10**6,))
    how = sampling_batch([sampled], VOCABULARY, CPU)
    assert how.edits is not None
    assert how.edits[1].tolist() == [1]


def test_flags() -> None:
    greedy, plain = row(SamplingSpec(temperature=0.0)), row(SamplingSpec())
    assert sampling_batch([greedy, greedy], VOCABULARY, CPU).all_greedy
    mixed = sampling_batch([greedy, plain], VOCABULARY, CPU)
    assert not mixed.all_greedy
    assert mixed.unfiltered
    for filtered in (SamplingSpec(top_p=0.9), SamplingSpec(top_k=2), SamplingSpec(min_p=0.1)):
        assert not sampling_batch([plain, row(filtered)], VOCABULARY, CPU).unfiltered
    assert sampling_batch([row(SamplingSpec(top_k=2**40))], VOCABULARY, CPU).top_k.tolist() == [
        VOCABULARY
    ]


def test_logprobs_are_those_of_the_model_itself(kernels: ReferenceKernels) -> None:
    given = logits(3)
    expected = torch.log_softmax(given.double(), dim=1)
    asking = SamplingSpec(
        temperature=0.3, logit_bias=((2, 50.0),), repetition_penalty=2.0, logprobs=3
    )
    samples = [
        row(asking, history=[1, 2]),
        row(SamplingSpec(seed=1)),
        row(SamplingSpec(logprobs=0, temperature=0.0)),
    ]
    first, second, third = sample(kernels, given.clone(), samples)
    assert first.token_id == 2
    assert first.logprob == pytest.approx(float(expected[0, 2]), abs=1e-5)
    assert [token for token, _ in first.top] == expected[0].topk(3).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(
        expected[0].topk(3).values.tolist(), abs=1e-5
    )
    assert (second.logprob, second.top) == (None, ())
    assert third.logprob == pytest.approx(float(expected[2].max()), abs=1e-5)
    assert third.top == ()


def test_more_logprobs_than_tokens(kernels: ReferenceKernels) -> None:
    (token,) = sample(kernels, logits(), [row(SamplingSpec(logprobs=1000))])
    assert len(token.top) == VOCABULARY


def test_scores(kernels: ReferenceKernels) -> None:
    given = logits(3)
    expected = torch.log_softmax(given.double(), dim=1)
    found = score(kernels, given, [ScoreRow(0, (3, 3, 11)), ScoreRow(1, ()), ScoreRow(2, (0,))])
    assert [len(values) for values in found] == [3, 0, 1]
    assert found[0] == pytest.approx([float(expected[0, t]) for t in (3, 3, 11)], abs=1e-5)
    assert found[2] == pytest.approx([float(expected[2, 0])], abs=1e-5)
