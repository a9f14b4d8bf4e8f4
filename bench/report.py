"""Result files to docs/benchmarks.md: tables, plots, and what to hold against them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

from bench import paths, results
from bench.peers.all import REASONS
from bench.plots import draw

Row = Mapping[str, Any]

_PARAGRAPH = re.compile(r"^(- |\d+\. |)([^\s|#!].*(?:\n(?!- |\d+\. |[|#!]).+)*)", re.MULTILINE)

_HEAD = """# Benchmarks

Made by `python -m bench report` from the files in `bench/results/`, which have every figure, the
commands, the versions and the commits. `make bench-quick` runs asgl and its ablations in a few
minutes; `make peers` installs the engines that it is raced against, each in an environment of its
own, and `make bench` then runs everything. `python -m bench list` names the workloads. Run on a
machine that does nothing else: two threads that meet at every step wait for each other when a third
takes a core.

## What to hold against these figures

- **Who measured.** asgl's own authors, on one machine. We know asgl better than its peers; each
  peer has the best settings that we found, and they are listed below. If you can make a peer
  faster, tell us how, and the table will change.
- **The machine.** {machine}. Two cores and a small model are where the cost of a call and of a step
  weighs most. Nothing here says how asgl does on large models, or on GPUs.
- **The weights differ.** asgl and OpenVINO read the same GGUF file (Q4_1), llama.cpp its own
  requantization of it, vLLM and transformers the same weights unpacked to floats; the formats stand
  under Engines and settings. Less to read is part of an engine's speed; the right answers below say
  what it costs. So is rounding what weights are multiplied by: OpenVINO and llama.cpp round it to 8
  bits, asgl to 15 where the processor has no products of bfloat16, and to 8 as asgl:int8 (Decode
  and prefill).
- **The work differs a little.** Most generations have a fixed length, so that all engines compute
  as much; greedy texts differ all the same, since near ties fall either way in different
  arithmetic.
- **How it is measured.** Engines run in turn on each workload, in an order that rotates with the
  rounds, after a warm-up apart. All stay loaded while others run. All prompts of a round begin with
  a line of that round's own, so that no cache is warm from the one before. At most {running}
  requests run at once, with {kv_gib} GiB for keys and values. Each peer has a process of its own;
  vLLM runs through its in-process asynchronous interface, which spares it HTTP. The load average
  before the run was {load}.
- **What peers lack counts.** Text is scored by computing the whole prompt once for each option,
  where a peer has no other way (few-shot-select); what a peer cannot do at all is n/a. "Broken off"
  has the rate of the programs that ended in time.
- **Not measured.** GPUs, other processors, other models, more than one machine, power. Workloads
  have the structure of the paper's and a few programs each, so that one takes seconds: nothing here
  says how a queue of thousands does.
"""


def write_report(folder: Path | None = None, docs: Path | None = None) -> Path:
    """Writes docs/benchmarks.md and its plots from the newest result file of each kind."""
    files = results.read(folder or paths.RESULTS)
    newest = {content["kind"]: content for content in files}
    docs = docs or paths.DOCS
    path = docs / "benchmarks.md"
    race = newest.get("race")
    parts = [_head(race or next(reversed(newest.values()), None))]
    if race is not None:
        parts += [_race(race), _engines(race), _quality(race), _details(race)]
    if "profile" in newest:
        parts.append(_profile(newest["profile"]))
    if "decode" in newest:
        parts.append(_decode(newest["decode"]))
    if "ablations" in newest:
        parts.append(_ablations(newest["ablations"]))
    if "growth" in newest:
        parts.append(_growth(newest["growth"]))
    for title, name in draw(newest, docs / "benchmarks"):
        parts.append(f"![{title}](benchmarks/{name})\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_fitted("\n".join(parts)), encoding="utf-8")
    return path


def _fitted(page: str) -> str:
    """The page, with its paragraphs and list items in lines of 100 columns."""

    def filled(found: re.Match[str]) -> str:
        mark, text = found.groups()
        return textwrap.fill(
            text,
            100,
            initial_indent=mark,
            subsequent_indent=" " * len(mark),
            break_long_words=False,
            break_on_hyphens=False,
        )

    return _PARAGRAPH.sub(filled, page)


# --- figures from rows ----------------------------------------------------------------------------


def speeds(rows: Iterable[Row], field: str = "programs_per_second") -> dict[str, dict[str, float]]:
    """By workload and engine; a run that was broken off counts, one that failed does not."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get(field) is not None:
            table.setdefault(row["workload"], {})[row["engine"]] = row[field]
    return table


def best_peer(row: Mapping[str, float]) -> tuple[str, float] | None:
    """The fastest engine that is not asgl."""
    peers = {
        engine: speed
        for engine, speed in row.items()
        if not engine.startswith("asgl") and speed > 0
    }
    return max(peers.items(), key=lambda item: item[1]) if peers else None


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def _engines_of(content: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["engine"] for row in content["results"]))


# --- parts ----------------------------------------------------------------------------------------


def _head(content: Mapping[str, Any] | None) -> str:
    if content is None:
        return "# Benchmarks\n\nThere are no results yet: `make bench` makes them and this page.\n"
    host, limits = content["host"], content.get("equal_limits", {})
    system = host["system"].split("-with")[0]
    machine = f"{host['cores']} cores of an {host['cpu']}, {host['memory_gib']:.0f} GiB, {system}"
    return _HEAD.format(
        machine=machine,
        running=limits.get("running", "-"),
        kv_gib=limits.get("kv_gib", "-"),
        load=content["load_before"][0],
    )


def _race(content: Mapping[str, Any]) -> str:
    engines = _engines_of(content)
    rows = {(row["workload"], row["engine"]): row for row in content["results"]}
    ratios: dict[str, float] = {}
    unfinished: list[str] = []
    lines = []
    for workload, by_engine in speeds(content["results"]).items():
        best = best_peer(by_engine)
        mine = by_engine.get("asgl")
        own = rows.get((workload, "asgl"), {})
        ideal = own["programs"] / own["ideal_seconds"] if own.get("ideal_seconds") else None
        ratio = mine / best[1] if mine and best else None
        if ratio is not None:
            ratios[workload] = ratio
        if best is not None and rows[workload, best[0]].get("timed_out"):
            unfinished.append(workload)
        beyond = " (2x is beyond it)" if ideal and best and 2 * best[1] > ideal else ""
        cells = [_cell(rows.get((workload, engine))) for engine in engines]
        lines.append(
            [
                workload,
                *cells,
                f"**{ratio:.2f}**" if ratio else "-",
                _figure(ideal) + beyond,
                f"{mine / ideal:.0%}" if mine and ideal else "-",
            ]
        )
    text = (
        f"\n## Programs per second\n\nMedian of {_rounds(content)}; {_made(content)}. The ideal is "
        "what the machine's "
        "measured limits allow for the tokens that must be computed and the bytes that must be "
        "read, attention and all "
        "overhead left out; products in float32 or bfloat16, whichever is faster here "
        "(`bench/optimum.py`).\n\n"
    )
    text += _table(["workload", *engines, "asgl / best peer", "ideal", "share of it"], lines)
    if ratios:
        text += (
            "\nGeometric mean of asgl over the best peer: "
            f"**{geometric_mean(list(ratios.values())):.2f}** on {len(ratios)} "
            f"workloads; behind on {sum(ratio < 1 for ratio in ratios.values())}."
        )
        finished = [ratio for workload, ratio in ratios.items() if workload not in unfinished]
        if finished and unfinished:
            text += (
                f" Without {', '.join(unfinished)}, where even the best peer was broken off: "
                f"**{geometric_mean(finished):.2f}**."
            )
        text += "\n"
    text += _hit_rates(content)
    return text + _absent(content) + _errors(content)


def _hit_rates(content: Mapping[str, Any]) -> str:
    """How near asgl's cache comes to one without bounds."""
    shares = {
        row["workload"]: row["hit_rate"] / row["optimal_hit_rate"]
        for row in content["results"]
        if row["engine"] == "asgl"
        and row.get("optimal_hit_rate")
        and row.get("hit_rate") is not None
    }
    if not shares:
        return ""
    least = min(shares, key=lambda workload: shares[workload])
    return (
        "\nasgl's hit rate is at least 98 % of the optimum on "
        f"{sum(share >= 0.98 for share in shares.values())} of "
        f"{len(shares)} workloads; the lowest is {shares[least]:.1%}, on {least}.\n"
    )


def _errors(content: Mapping[str, Any]) -> str:
    failed: dict[tuple[str, str], list[str]] = {}
    for row in content["results"]:
        if "error" in row:
            failed.setdefault((row["engine"], row["error"]), []).append(row["workload"])
    return "".join(
        f"\nn/a: {engine} on {', '.join(workloads)}: {why}.\n"
        for (engine, why), workloads in failed.items()
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if "error" in row:
        return "n/a"
    low, high = row["programs_per_second_range"]
    broken = " (broken off)" if row.get("timed_out") else ""
    return f"{_figure(row['programs_per_second'])} [{_figure(low)}-{_figure(high)}]{broken}"


def _engines(content: Mapping[str, Any]) -> str:
    lines = [
        [name, about["version"], about["settings"], REASONS.get(name, "-")]
        for name, about in content["engines"].items()
    ]
    return "\n## Engines and settings\n\n" + _table(
        ["engine", "version", "settings", "why these"], lines
    )


def _quality(content: Mapping[str, Any]) -> str:
    engines = _engines_of(content)
    graded = speeds(content["results"], "accuracy")
    counts = {
        (row["workload"], row["engine"]): row["programs"] * row["rounds"]
        for row in content["results"]
        if "error" not in row
    }
    lines = [
        [
            workload,
            *(
                f"{by[engine]:.0%} of {counts[workload, engine]}" if engine in by else "-"
                for engine in engines
            ),
        ]
        for workload, by in graded.items()
    ]
    if not lines:
        return ""
    return (
        "\n## Right answers\n\nOn the tasks that have right answers, over all rounds. A model of "
        "this size guesses on most "
        "(a quarter is right by chance where there are four choices), and the answers are too few "
        "to tell engines apart by "
        "some points.\n\n" + _table(["workload", *engines], lines)
    )


def _details(content: Mapping[str, Any]) -> str:
    """Latency, hit rate, memory, of asgl and the fastest peer."""
    rows = {(row["workload"], row["engine"]): row for row in content["results"]}
    lines = []
    for workload, by_engine in speeds(content["results"]).items():
        best = best_peer(by_engine)
        for engine in ["asgl", *([best[0]] if best else [])]:
            row = rows.get((workload, engine))
            if row is None or "error" in row:
                continue
            optimal = row.get("optimal_hit_rate")
            share = (
                f" ({row['hit_rate'] / optimal:.1%} of optimum)"
                if row["hit_rate"] is not None and optimal
                else ""
            )
            lines.append(
                [
                    workload,
                    engine,
                    _figure(row["latency_p50"]),
                    _figure(row["latency_p99"]),
                    _figure(row["time_to_first_token_p50"]),
                    _figure(row["time_to_first_token_p99"]),
                    "-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}{share}",
                    _figure(row["generated_tokens"]),
                    _figure(row.get("peak_memory_mib")),
                    _figure(row["client_cpu_seconds"]),
                ]
            )
    return (
        "\n## Latency, cache and memory\n\nasgl and the fastest peer. Seconds of a whole program, "
        "and to the first token of "
        "a generation; `-` where an engine does not tell. The client's CPU time is, for asgl, that "
        "of its event loop with "
        "language, planning and delivery; for a peer that of the harness alone.\n\n"
        + _table(
            [
                "workload",
                "engine",
                "p50",
                "p99",
                "first token p50",
                "p99",
                "hit rate",
                "tokens out",
                "peak MiB",
                "client CPU s",
            ],
            lines,
        )
    )


def _profile(content: Mapping[str, Any]) -> str:
    from bench import breakdown

    head, lines = breakdown.table(content)
    text = (
        f"\n## Where asgl's time goes\n\nShares of the wall time; {_made(content)}. Products to "
        "sampling: steps on the "
        "device thread. Waiting: nothing to do. Rest: hand-over between threads, programs.\n\n"
        + _table(head, lines)
        + "\nThe largest losses against the ideal, of all workloads together:\n\n"
    )
    return text + "".join(
        f"{number}. {loss['part']}: {loss['seconds']:.2f} s, {loss['share']:.1%} of the time: "
        f"{loss['cause']}.\n"
        for number, loss in enumerate(content["losses"][:3], 1)
    )


def _decode(content: Mapping[str, Any]) -> str:
    engines = _engines_of(content)
    lines = []
    for workload, by_engine in speeds(content["results"], "tokens_per_second").items():
        best = best_peer(by_engine)
        mine = by_engine.get("asgl")
        ratio = f"**{mine / best[1]:.2f}**" if mine and best else "-"
        lines.append([workload, *(_figure(by_engine.get(engine)) for engine in engines), ratio])
    return (
        "\n## Decode and prefill\n\nTokens per second through each engine's interface, prompts of "
        "256 tokens; "
        f"median of {_rounds(content)}; commit `{content['commit'][:10]}`, load before "
        f"{content['load_before'][0]}. "
        "Decode: the tokens after the first, over the time that 64 of them (32 from 32 requests "
        "on) take more than 1 does; "
        "prompts are cached where the engine caches (`bench/decode.py`).\n\n"
        + _table(["", *engines, "asgl / best peer"], lines)
        + "".join(f"\n{engine}: {why}.\n" for engine, why in content.get("broken_off", {}).items())
        + _absent(content)
    )


def _ablations(content: Mapping[str, Any]) -> str:
    engines = [engine for engine in _engines_of(content) if engine != "asgl"]
    rates = speeds(content["results"], "hit_rate")
    broken = {
        (row["workload"], row["engine"]) for row in content["results"] if row.get("timed_out")
    }
    lines = []
    for workload, by_engine in speeds(content["results"]).items():
        full = by_engine.get("asgl")
        if full:
            cells = [
                "-"
                if engine not in by_engine
                else f"{by_engine[engine] / full:.2f} ({rates[workload].get(engine, 0):.0%})"
                + (" (broken off)" if (workload, engine) in broken else "")
                for engine in engines
            ]
            lines.append(
                [workload, f"{_figure(full)} ({rates[workload].get('asgl', 0):.0%})", *cells]
            )
    about = "\n".join(
        f"- `{name}`: {content['engines'][name]['settings'].split(';')[0]}" for name in engines
    )
    return (
        "\n## What each part is worth\n\nasgl's programs per second, and those of asgl without a "
        "part as a share of it; hit "
        f"rates in brackets. Median of {_rounds(content)}; {_made(content)}.\n\n{about}\n\n"
        + _table(["workload", "asgl", *(engine.removeprefix("asgl:") for engine in engines)], lines)
        + _absent(content)
    )


def _growth(content: Mapping[str, Any]) -> str:
    engines = _engines_of(content)
    cells: dict[tuple[str, int], dict[str, Row]] = {}
    for row in content["results"]:
        cells.setdefault((row["workload"], row["concurrency"]), {})[row["engine"]] = row
    lines = [
        [workload, str(concurrency), *(_cell(by.get(engine)) for engine in engines)]
        for (workload, concurrency), by in cells.items()
    ]
    return (
        "\n## Growth with the number of programs at once\n\nPrograms per second, median of "
        f"{_rounds(content)}; "
        f"{_made(content)}.\n\n"
        + _table(["workload", "programs at once", *engines], lines)
        + _absent(content)
    )


def _made(content: Mapping[str, Any]) -> str:
    return f"commit `{content['commit'][:10]}`, `{content['command']}`"


def _absent(content: Mapping[str, Any]) -> str:
    """Engines that could not be run, and workloads that there was no time for."""
    text = "".join(
        f"\nMissing: {engine} ({why}).\n" for engine, why in content.get("missing", {}).items()
    )
    return text + (
        f"\nLeft out, for want of time: {', '.join(content['left_out'])}.\n"
        if content.get("left_out")
        else ""
    )


def _rounds(content: Mapping[str, Any]) -> str:
    rounds = max((row.get("rounds", 1) for row in content["results"]), default=1)
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _figure(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)
