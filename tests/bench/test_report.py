"""Result files, the optimum, and the report from canned results."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from bench.client import StringClient, Usage
from bench.driver import Run

from asgl.scheduling.request import Request
from asgl.scheduling.sequence import SequenceState
from bench import decode, optimum, race, report, results


def run(seconds: float, programs: int = 4, **options) -> Run:
    return Run(
        seconds=seconds,
        latencies=[seconds / 2] * programs,
        usages=[Usage(100, 60, 10, 0.25)] * programs,
        **options,
    )


def canned() -> list[dict]:
    return [
        results.row(
            "react",
            "asgl",
            [run(1.0), run(2.0), run(1.0)],
            concurrency=4,
            optimal_hit_rate=0.61,
            ideal_seconds=0.5,
            run_seconds=0.7,
            plan_seconds=0.1,
            steps=20,
            peak_memory_mib=900.0,
        ),
        results.row(
            "react", "openvino", [run(2.0), run(2.0), run(2.0, timed_out=True)], concurrency=4
        ),
        results.row(
            "judge",
            "asgl",
            [run(4.0, right=[True, False])] * 3,
            concurrency=4,
            optimal_hit_rate=0.6,
            ideal_seconds=3.0,
            run_seconds=3.0,
            plan_seconds=0.5,
            steps=9,
        ),
        results.row("judge", "openvino", [run(2.0, right=[True, True])] * 3, concurrency=4),
        {"workload": "judge", "engine": "llama.cpp", "concurrency": 4, "error": "it cannot"},
    ]


def content(kind: str, rows: list[dict], **more) -> dict:
    engines = {
        row["engine"]: {"version": "1", "settings": f"settings of {row['engine']}; more"}
        for row in rows
    }
    return results.document(
        kind,
        rows,
        load_before=(0.1, 0.2, 0.3),
        engines=engines,
        missing={"vllm": "not installed"},
        **more,
    )


def test_a_row():
    row = results.row("react", "asgl", [run(1.0), run(2.0), run(4.0)], concurrency=4, steps=3)
    assert row["programs_per_second"] == 2.0
    assert row["programs_per_second_range"] == [1.0, 4.0]
    assert row["programs"] == 4
    assert row["latency_p50"] == 1.0
    assert row["latency_p99"] == 2.0
    assert row["time_to_first_token_p50"] == 0.25
    assert row["hit_rate"] == 0.6
    assert row["generated_tokens"] == 40
    assert row["accuracy"] is None
    assert row["steps"] == 3
    assert "timed_out" not in row


def test_an_engine_that_does_not_tell():
    silent = Run(seconds=1.0, latencies=[1.0], usages=[Usage(10, None, 5, None)], timed_out=True)
    row = results.row("react", "openvino", [silent], concurrency=1)
    assert row["hit_rate"] is None
    assert row["time_to_first_token_p50"] is None
    assert row["timed_out"] is True


def test_result_files_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results.paths, "RESULTS", tmp_path)
    written = content("race", canned(), equal_limits={"running": 64, "kv_gib": 2})
    path = results.write("race", written)
    assert json.loads(path.read_text()) == json.loads(json.dumps(written))
    assert {"commit", "command", "host", "load_before", "results"} <= results.read(tmp_path)[
        0
    ].keys()


def test_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(results.paths, "RESULTS", tmp_path)
    results.write("race", content("race", canned(), equal_limits={"running": 64, "kv_gib": 2}))
    decoded = [
        {"workload": "decode, 8", "engine": engine, "rounds": 3, "tokens_per_second": speed}
        for engine, speed in (("asgl", 600.0), ("openvino", 400.0))
    ]
    results.write("decode", content("decode", decoded))
    variants = [
        {**canned()[0]},
        {
            **canned()[0],
            "engine": "asgl:no-cache",
            "programs_per_second": 1.0,
            "hit_rate": 0.0,
            "timed_out": True,
        },
    ]
    results.write("ablations", content("ablations", variants))
    growth = [{**canned()[0], "concurrency": at_once} for at_once in (1, 4, 16)]
    results.write("growth", content("growth", growth))
    path = report.write_report(tmp_path, tmp_path / "docs")
    text = path.read_text()
    react = next(line for line in text.splitlines() if line.startswith("| react"))
    assert "4 [2-4]" in react
    assert "**2.00**" in react  # four programs a second against two
    assert "8" in react  # the ideal: four programs in half a second
    prose = " ".join(text.split())
    mean = "Geometric mean of asgl over the best peer: **1.00** on 2 workloads; behind on 1."
    assert mean in prose
    assert "Without react, where even the best peer was broken off: **0.50**." in prose
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("|"))
    assert "| judge | 50% of 12 | 100% of 12 | - |" in text
    assert "Missing: vllm (not installed)." in text
    assert "n/a: llama.cpp on judge: it cannot." in text
    assert "**1.50**" in text  # decode
    assert "| react | 4 (60%) | 0.25 (0%) (broken off) |" in text
    assert "98.4% of optimum" in text
    plots = sorted(file.name for file in (tmp_path / "docs" / "benchmarks").glob("*.svg"))
    assert all(f"benchmarks/{name}" in text for name in plots)


def test_the_report_of_nothing(tmp_path):
    assert (
        "There are no results yet" in report.write_report(tmp_path, tmp_path / "docs").read_text()
    )


# --- the optimum ----------------------------------------------------------------------------------


def ended(prompt: list[int], generated: list[int]) -> SequenceState:
    sequence = SequenceState(Request(1, prompt, max_tokens=len(generated)))
    sequence.tokens.extend(generated)
    return sequence


def test_the_least_work():
    done = optimum.work(
        [
            ended([1, 2, 3, 4], [5, 6]),
            ended([1, 2, 3, 4, 5, 6, 7], [8]),  # goes on from the first: only 7 is new
            ended([1, 2, 9], []),  # 9 is new; nothing is wanted of it
            ended([1, 2, 9], [3]),  # all is known, but logits are wanted
        ]
    )
    assert done == optimum.Work(
        prompt_tokens=17, computed_tokens=4 + 1 + 1 + 1, generated_tokens=4, chain=3
    )
    assert optimum.hit_rate([done, done]) == 1 - 14 / 34
    assert optimum.hit_rate([]) == 0


def test_the_ideal_time_is_the_larger_of_two():
    model, limits = (
        optimum.Model(10.0, 5.0, 100.0),
        optimum.Limits(flops=10.0, bytes_per_second=100.0),
    )
    much = optimum.Work(prompt_tokens=50, computed_tokens=8, generated_tokens=2, chain=2)
    assert optimum.ideal_seconds(much, model, limits) == (10 * 10 + 2 * 5) / 10
    long = optimum.Work(prompt_tokens=50, computed_tokens=1, generated_tokens=40, chain=400)
    assert optimum.ideal_seconds(long, model, limits) == 400


# --- races on a tiny model ------------------------------------------------------------------------


@pytest.fixture
def settings(model, monkeypatch):
    monkeypatch.setattr(optimum, "measure", lambda: optimum.Limits(1e9, 1e9))
    monkeypatch.setattr(race, "WARM_UP", ())
    options = {"kernels": "reference", "dtype": "float32", "kv_cache_tokens": 20_000}
    return lambda **more: race.Settings(
        model=str(model), rounds=2, scale=0.01, runtime=options, **more
    )


async def test_a_race_of_variants(settings):
    done = await race.race(
        settings(
            engines=("asgl", "asgl:no-cache"),
            workloads=("few-shot-mcq", "judge"),
            concurrency=(1, 2),
        ),
        "ablations",
    )
    rows = done["results"]
    assert len(rows) == 2 * 2 * 2
    assert all(row["rounds"] == 2 and row["programs_per_second"] > 0 for row in rows)
    cached, alone = (
        [row for row in rows if row["engine"] == engine] for engine in ("asgl", "asgl:no-cache")
    )
    assert all(0 < row["hit_rate"] <= row["optimal_hit_rate"] for row in cached)
    assert all(row["hit_rate"] == 0 for row in alone)
    assert done["missing"] == {}


async def test_a_peer_that_is_not_installed_is_missing(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("ASGL_HOME", str(tmp_path))
    done = await race.race(
        settings(engines=("asgl", "transformers"), workloads=("few-shot-mcq",)), "race"
    )
    assert "make peers" in done["missing"]["transformers"]
    assert {row["engine"] for row in done["results"]} == {"asgl"}


async def test_what_there_is_no_time_for_is_left_out(settings):
    done = await race.race(settings(workloads=("few-shot-mcq", "judge"), seconds=0.0), "race")
    assert done["left_out"][-1] == "judge"
    assert "judge" not in {row["workload"] for row in done["results"]}


async def test_what_is_done_is_saved_and_not_done_again(settings):
    asked = settings(workloads=("few-shot-mcq", "judge"))
    saved: list[dict] = []
    await race.race(asked, "race", save=saved.append)
    assert [[row["workload"] for row in content["results"]] for content in saved] == [
        ["few-shot-mcq"],
        ["few-shot-mcq", "judge"],
    ]
    again: list[dict] = []
    await race.race(asked, "race", earlier=saved[0]["results"], save=again.append)
    assert [row["workload"] for row in again[-1]["results"]] == ["few-shot-mcq", "judge"]
    assert again[-1]["results"][0] == saved[0]["results"][0]
    assert len(again) == 1


def test_only_the_same_race_is_gone_on_with(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(results.paths, "RESULTS", tmp_path)
    asked = settings().asked
    with pytest.raises(SystemExit, match="nothing to go on from"):
        results.resumed("race", asked)
    results.write("race", content("race", canned(), asked=asked))
    assert [row["engine"] for row in results.resumed("race", asked)] == [
        "asgl",
        "openvino",
        "asgl",
        "openvino",
        "llama.cpp",
    ]
    with pytest.raises(SystemExit, match="asked"):
        results.resumed("race", {**asked, "rounds": 7})


async def test_a_variant_that_is_broken_off_leaves_no_step_behind(settings):
    """A step in flight belongs to the scheduler that planned it; the next run has another."""
    done = await race.race(
        settings(
            engines=("asgl", "asgl:no-cache", "asgl:fcfs"),
            workloads=("chat-long", "multi-chain"),
            limit=0.1,
        ),
        "ablations",
    )
    assert [row["timed_out"] for row in done["results"]] == [True] * 6


class Failing:
    """A peer that fails at its first request, and stands still at the next ones."""

    name, pid = "failing", 0

    def __init__(self) -> None:
        self.about = {"version": "1", "settings": "fails"}
        self.asked, self.recovered = 0, 0

    def client(self, salt: str) -> StringClient:
        return StringClient(self, salt)

    async def complete(self, prompt, options):
        self.asked += 1
        if self.asked == 1:
            raise race.PeerError("it fell over")
        await asyncio.Event().wait()

    async def recover(self) -> None:
        self.recovered += 1

    def figures(self, client) -> dict:
        return {}


async def test_a_peer_that_fails_is_started_anew(settings, monkeypatch):
    peer = Failing()

    async def opened(settings, stack):
        return [peer], {}

    async def warm(engine, settings):
        pass

    monkeypatch.setattr(race, "open_engines", opened)
    monkeypatch.setattr(race, "warm_up", warm)
    done = await race.race(settings(workloads=("few-shot-mcq", "judge"), limit=0.01), "race")
    first, second = done["results"]
    assert first["error"] == "it fell over"
    assert second["timed_out"]
    assert (second["rounds"], second["programs_per_second"]) == (1, 0)
    assert peer.recovered == 2


class Words:
    """Prompts that need no tokenizer."""

    made = 0

    def make(self, tokens: int) -> str:
        self.made += 1
        return f"{self.made} words"

    def count(self, text: str) -> int:
        return len(text.split())


async def test_decode_rates(settings, monkeypatch):
    """By a clock that goes on by a second with each generated token."""
    import asgl

    async with asgl.Runtime(
        settings().model, kernels="reference", dtype="float32", kv_cache_tokens=20_000
    ) as rt:
        monkeypatch.setattr(
            decode,
            "time",
            SimpleNamespace(perf_counter=lambda: float(rt.statistics().generated_tokens)),
        )
        figures, wrong = await decode.turn(
            race.AsglEngine(rt, "asgl"), Words(), {1: 12, 2: 12}, 100
        )
    assert figures == {"prefill": 2, "decode, 1": 1, "decode, 2": 1, "32 forks of 1,000 tokens": 1}
    assert not wrong


async def test_decode_is_broken_off():
    peer = Failing()
    peer.asked = 1
    assert await decode.turn(peer, Words(), {1: 12}, 0.01) == (
        {},
        "broken off after 0 s of one line",
    )
    peer.asked = 0
    assert await decode.turn(peer, Words(), {1: 12}, 10) == ({}, "it fell over")
    assert peer.recovered == 2


def test_prompts_have_so_many_tokens():
    prompts = decode.Prompts(lambda text: len(text.split()))
    texts = [prompts.make(5) for _ in range(3)]
    assert len(set(texts)) == 3
    assert all(len(text.split()) <= 5 for text in texts)
