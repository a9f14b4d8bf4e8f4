"""Results as JSON: what was run, on what, and rows of figures."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench import paths
from bench.driver import Run, percentile


def row(
    workload: str, engine: str, runs: Sequence[Run], *, concurrency: int, **more: Any
) -> dict[str, Any]:
    """The figures of an engine's runs of a workload: medians over the runs, with the least and the
    most; latencies over all programs of all runs. Times in seconds."""
    speeds = [run.programs_per_second for run in runs]
    latencies = [latency for run in runs for latency in run.latencies]
    usages = [usage for run in runs for usage in run.usages]
    first = [usage.time_to_first_token for usage in usages if usage.time_to_first_token is not None]
    cached = [usage.cached_tokens for usage in usages]
    prompt = sum(usage.prompt_tokens for usage in usages)
    right = [grade for run in runs for grade in run.right]
    hit_rate = (
        sum(tokens or 0 for tokens in cached) / prompt if prompt and None not in cached else None
    )
    return {
        "workload": workload,
        "engine": engine,
        "concurrency": concurrency,
        "rounds": len(runs),
        "programs": len(latencies) // len(runs),
        "programs_per_second": _short(median(speeds)),
        "programs_per_second_range": [_short(min(speeds)), _short(max(speeds))],
        "seconds": _short(median(run.seconds for run in runs)),
        "latency_p50": _short(percentile(latencies, 0.5)),
        "latency_p99": _short(percentile(latencies, 0.99)),
        "time_to_first_token_p50": _short(percentile(first, 0.5)),
        "time_to_first_token_p99": _short(percentile(first, 0.99)),
        "hit_rate": _short(hit_rate),
        "prompt_tokens": prompt // len(runs),
        "generated_tokens": sum(usage.generated_tokens for usage in usages) // len(runs),
        "accuracy": _short(sum(right) / len(right)) if right else None,
        "client_cpu_seconds": _short(median(run.client_cpu_seconds for run in runs)),
        **({"timed_out": True} if any(run.timed_out for run in runs) else {}),
        **{
            name: _short(value) if isinstance(value, float) else value
            for name, value in more.items()
        },
    }


def document(
    kind: str, rows: Sequence[Mapping[str, Any]], *, load_before: Sequence[float], **more: Any
) -> dict[str, Any]:
    """A result file's content."""
    return {
        "kind": kind,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "src", "bench", ":!bench/results")),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "host": host(),
        "load_before": [round(load, 2) for load in load_before],
        "load_after": [round(load, 2) for load in os.getloadavg()],
        **more,
        "results": list(rows),
    }


def write(name: str, content: Mapping[str, Any]) -> Path:
    """Writes the file, a row a line."""
    path = paths.RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    head = {key: value for key, value in content.items() if key != "results"}
    rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in content["results"])
    partial.write_text(
        json.dumps(head, indent=2, ensure_ascii=False)[: -len("\n}")]
        + f',\n  "results": [\n{rows}\n  ]\n}}\n',
        encoding="utf-8",
    )
    partial.replace(path)
    return path


def resumed(name: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an interrupted race. SystemExit if there is none, or if it was another one: of
    other code or settings."""
    path = paths.RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there is nothing to go on from: no {path}")
    content = json.loads(path.read_text(encoding="utf-8"))
    now = {"asked": asked, "commit": _git("rev-parse", "HEAD")}
    for field, value in now.items():
        if content[field] != value:
            raise SystemExit(
                f"{path} has {field} {content[field]}, and this would be {value}: run it without "
                "--resume"
            )
    return content["results"]


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, oldest first."""
    return sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")),
        key=lambda content: content["date"],
    )


def host() -> dict[str, Any]:
    """The machine and what runs on it."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "unknown",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numba", "numpy", "tokenizers")},
    }


def peak_memory(pid: int) -> float | None:
    """The peak of resident memory since `reset_peak_memory`, in MiB, of a process and all below it;
    None if it is not told."""
    peaks = [
        int(line.split()[1])
        for process in _tree(pid)
        for line in _lines(f"/proc/{process}/status")
        if line.startswith("VmHWM")
    ]
    return sum(peaks) / 1024 if peaks else None


def reset_peak_memory(pid: int) -> None:
    for process in _tree(pid):
        try:
            Path(f"/proc/{process}/clear_refs").write_text("5")
        except OSError:
            continue


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and all below it have taken so far."""
    ticks = 0
    for process in _tree(pid):
        for line in _lines(f"/proc/{process}/stat"):
            ticks += sum(map(int, line.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _tree(pid: int) -> list[int]:
    """A process and all below it; of this one without what is below, which are the peers that it
    has started."""
    found = [pid]
    if pid == os.getpid():
        return found
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found.extend(map(int, children.read_text().split()))
            except OSError:
                continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=paths.REPOSITORY
    )
    return done.stdout.strip()


def _short(value: float | None) -> float | None:
    """Four significant digits."""
    return None if value is None else float(f"{value:.4g}")
