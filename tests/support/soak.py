"""Random programs on the real language, engine and scheduler, with the runner that knows what every
slot must hold.

    python tests/support/soak.py --seconds 600     what `make soak` runs; prints each life's seed

A life is an engine with random options under a crowd of random programs: nested forks, selects,
rewinds, pins, flushes, two namespaces and priorities, tasks cancelled at random steps, sometimes a
step that raises. At its end every op has settled, the books balance, and what was generated is what
the prompt alone determines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from fake_runner import FakeRunner, expected_output, expected_scores
from scheduler_harness import CheckedScheduler

import asgl
from asgl.engine.device import DeviceThread
from asgl.engine.engine import Engine
from asgl.language.session import Session
from asgl.plan import StepPlan
from asgl.scheduling.queue import POLICIES
from asgl.trace import StepEvent, Tracers

LONGEST = 400
"""Tokens of a prompt at most."""


class Letters:
    """Decodes each token to the character with that number."""

    pending = False

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


class LetterTokenizer:
    """One token a character."""

    vocabulary = 256
    special_tokens = MappingProxyType[str, int]({})
    end_tokens = ()
    bos = 1
    adds_bos = False

    def detokenizer(self, begun: bytes = b"") -> Letters:
        return Letters()

    def cut_bytes(self, ids: Sequence[int]) -> bytes:
        return b""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id % 256,))

    def encode_run(self, parts: Sequence[str | int], after: int | None) -> list[int]:
        return [
            id for part in parts for id in ([part] if isinstance(part, int) else self.encode(part))
        ]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: Iterable[int], *, control: bool = True) -> str:
        return "".join(map(chr, ids))


class StepFailedError(Exception):
    """What an injected failure raises."""


@dataclass
class Life:
    """One engine, its crowd, and what was seen."""

    seed: int
    generator: random.Random = field(init=False)
    checked: int = 0
    cancelled: int = 0
    steps: int = 0
    at_step: dict[int, list[asyncio.Task[None]]] = field(default_factory=dict)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.generator = random.Random(self.seed)

    def event(self, event: object) -> None:
        """A tracer: cancels tasks at the steps that were drawn for them."""
        if isinstance(event, StepEvent):
            self.steps += 1
            for task in self.at_step.pop(event.number, ()):
                self.cancelled += task.cancel()

    async def run(self) -> None:
        draw = self.generator
        capacity = draw.choice([600, 1000, 3000])
        fails_at = draw.randrange(20, 200) if draw.random() < 0.15 else -1

        def before_step(plan: StepPlan) -> None:
            if plan.number == fails_at:
                raise StepFailedError

        steps_in_flight = draw.choice([1, 2])
        runner, device = FakeRunner(capacity, before_step, steps_in_flight), DeviceThread()
        scheduler = CheckedScheduler(
            capacity=capacity,
            max_running=draw.choice([1, 4, 32]),
            max_batch_tokens=draw.choice([16, 64, 256]),
            policy=draw.choice(POLICIES),
            patience=draw.choice([100, 10_000]),
            share_in_batch=draw.choice([True, True, False]),
            steps_in_flight=steps_in_flight,
        )
        engine = Engine(
            runner,
            scheduler,
            device,
            tokenizer=LetterTokenizer(),
            context_length=10_000,
            tracers=Tracers([self]),
        )
        engine.start()
        self.engine = engine
        session = Session(engine)
        tasks = [asyncio.create_task(self._program(session)) for _ in range(draw.randint(5, 40))]
        for task in tasks:
            if draw.random() < 0.3:
                self.at_step.setdefault(draw.randrange(150), []).append(task)
        await asyncio.wait(tasks)
        for task in tasks:
            self._judge(task, failing=fails_at >= 0)
        await session.aclose()
        session.unseen_failures()
        await engine.close()
        await device.close()
        scheduler.check()
        assert scheduler.kv_cache.available == capacity
        assert scheduler.kv_cache.cache.pinned == 0
        assert not scheduler.running
        assert not scheduler.waiting
        assert len(asyncio.all_tasks()) == 1

    def _judge(self, task: asyncio.Task[None], *, failing: bool) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not (failing and _only(error, asgl.EngineError, asgl.StreamError)):
            raise error

    async def _program(self, session: Session) -> None:
        draw = self.generator
        s = session.prompt(
            draw.choice(["Shared beginning of many. ", "Another one: ", ""]) + self._text(),
            cache_salt=draw.choice([None, None, "salt"]),
            priority=draw.randint(0, 1),
        )
        await self._work(s, depth=0)

    async def _work(self, s: asgl.PromptStream, depth: int) -> None:
        draw = self.generator
        for _ in range(draw.randint(1, 4)):
            if len(s.token_ids) > LONGEST:
                return
            act = draw.random()
            s += self._text()
            if act < 0.45:
                await self._generate(s)
            elif act < 0.6:
                await self._select(s)
            elif act < 0.7:
                mark = s.mark()
                before = list(s.token_ids)
                await s.gen(max_tokens=draw.randint(1, 8))
                s.rewind(mark)
                await s.sync()
                assert s.token_ids == before
            elif act < 0.85 and depth < 2:
                async with s.fork(draw.randint(2, 4)) as branches:
                    for branch in branches:
                        branch.start_soon(self._work, depth + 1)
                if draw.random() < 0.3:
                    s.join(branches)
            elif act < 0.92:
                handle = s.gen(max_tokens=60)
                async for _ in handle:
                    break
                if draw.random() < 0.5:
                    handle.stop()
                    await handle
                else:
                    handle.cancel()
                    await asyncio.wait([asyncio.ensure_future(_outcome(handle))])
            elif act < 0.98:
                await s.extend("")
                if draw.random() < 0.5:  # a pin that lasts until it yields, or the engine is closed
                    self.engine.pin(s.token_ids, namespace=s.cache_salt, seconds=3600)
            else:
                self.engine.flush_cache()

    async def _generate(self, s: asgl.PromptStream) -> None:
        prompt = list(s.token_ids)
        handle = s.gen(max_tokens=self.generator.randint(1, 30))
        await handle
        assert handle.token_ids == expected_output(prompt, len(handle.token_ids))
        assert s.token_ids == prompt + handle.token_ids
        self.checked += 1

    async def _select(self, s: asgl.PromptStream) -> None:
        prompt = list(s.token_ids)
        options = [self._text() for _ in range(self.generator.randint(1, 5))]
        words = s.text[-1:].isalnum() and all(option[0].isalnum() for option in options)
        space = " " if words else ""  # a word after a word
        handle = s.select(None, options)
        await handle
        assert handle.token_logprobs == [
            expected_scores(prompt, (space + option).encode()) for option in options
        ]
        self.checked += 1

    def _text(self) -> str:
        return "".join(self.generator.choice("ab ") for _ in range(self.generator.randint(1, 12)))


async def _outcome(handle: asgl.Handle[str]) -> None:
    with contextlib.suppress(asgl.OpCancelledError):
        await handle


def _only(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether the error, or each error of a group, is of these kinds."""
    if isinstance(error, BaseExceptionGroup):
        return all(_only(inner, *kinds) for inner in error.exceptions)
    return isinstance(error, kinds)


def live(seed: int) -> Life:
    """A whole life; raises what was wrong in it."""
    life = Life(seed)
    asyncio.run(life.run())
    return life


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, help="one life only")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(live(arguments.seed))
        return
    end, seed, totals = time.monotonic() + arguments.seconds, 0, [0, 0, 0]
    while time.monotonic() < end:
        print(f"seed {seed}", end="\r", flush=True)
        life = live(seed)
        totals = [
            a + b for a, b in zip(totals, (life.steps, life.checked, life.cancelled), strict=True)
        ]
        seed += 1
    print(
        f"{seed} lives, {totals[0]} steps, {totals[1]} outputs checked, {totals[2]} tasks "
        "cancelled: the books balance"
    )


if __name__ == "__main__":
    main()
