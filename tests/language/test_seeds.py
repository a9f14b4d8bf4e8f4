"""Seeds: literal when given to an op, derived when inherited, never from timing."""

from __future__ import annotations

import hashlib

from fake_engine import FakeEngine, FakeTemplate

from asgl.language import Session, assistant, gen
from asgl.language.seeds import derive
from asgl.sampling import SamplingParams

SEEDED = SamplingParams(seed=7)


async def run(**settings: object) -> list[int]:
    """A program of two ops and a fork; its seeds."""
    engine = FakeEngine(template=FakeTemplate())
    s = Session(engine).prompt("hi", **{"sampling": SEEDED, **settings})  # type: ignore[arg-type]
    await s.gen()
    s.gen()
    async with s.fork(2) as branches:
        for branch in branches:
            branch.gen()
    await s.sync()
    return engine.seeds


def test_the_hash_is_as_documented() -> None:
    text = "(7, ('n', 'hi'), (1, 0), 2, 0)"
    assert derive(7, ("n", "hi"), (1, 0), 2, 0) == int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest()
    )


async def test_inherited_seeds_differ_and_can_be_reproduced() -> None:
    first = await run()
    assert first == await run()
    assert len(set(first)) == 4
    assert first[0] == derive(7, (None, "hi"), (), 0, 0)
    assert first[2] == derive(7, (None, "hi"), (2, 0), 0, 0)


async def test_they_do_not_depend_on_what_only_reads_the_stream() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt("hi", sampling=SEEDED)
    await s.prefetch()  # as a pin does, and a save with keys and values
    await s.gen()
    assert engine.seeds[-1] == derive(7, (None, "hi"), (), 0, 0)
    async with s.fork(2):
        await s.prefetch()


async def test_they_depend_on_seed_name_and_text() -> None:
    seen = [*await run(), *await run(name="other"), *await run(sampling=SamplingParams(seed=8))]
    assert len(set(seen)) == 12


async def test_a_runtime_seed_is_inherited() -> None:
    engine = FakeEngine(defaults=SEEDED)
    await Session(engine).prompt("hi").gen()
    assert engine.seeds == [derive(7, (None, "hi"), (), 0, 0)]


async def test_a_seed_given_to_gen_is_literal() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt("hi", sampling=SEEDED)
    await s.gen(seed=3)
    await s.gen(seed=3)
    assert engine.seeds == [3, 3]


async def test_without_a_seed_they_are_random() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt("hi")
    for _ in range(8):
        await s.gen()
    assert len(set(engine.seeds)) == 8


async def test_appended_text_does_not_count_and_a_retry_does() -> None:
    engine = FakeEngine()
    one, two = (Session(engine).prompt("hi", sampling=SEEDED) for _ in range(2))
    one += "a"
    one += "b"
    two += "ab"
    mark = one.mark()
    await one.gen()
    await two.gen()
    assert engine.seeds[0] == engine.seeds[1]
    one.rewind(mark)
    await one.gen()
    assert engine.seeds[2] != engine.seeds[0]


async def test_two_gens_in_one_message_differ() -> None:
    engine = FakeEngine(template=FakeTemplate())
    s = Session(engine).prompt(sampling=SEEDED)
    await s.submit(assistant(gen("a") + " and " + gen("b")))
    assert len(set(engine.seeds)) == 2


async def test_samples_differ_also_with_a_seed() -> None:
    engine = FakeEngine()
    s = Session(engine).prompt("hi")
    await s.sample(n=3, seed=5)
    first = engine.seeds[:]
    assert len(set(first)) == 3
    again = FakeEngine()
    await Session(again).prompt("hi").sample(n=3, seed=5)
    assert again.seeds == first
