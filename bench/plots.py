"""The report's plots, as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(newest: Mapping[str, Mapping[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """Draws what the results have figures for; title and file name of each plot. Without matplotlib
    there are none."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "asgl"  # the same plot is the same file
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if "race" in newest:
        drawn += [
            _throughput(newest["race"], folder),
            _latency(newest["race"], folder),
            _hit_rate(newest["race"], folder),
        ]
    if "growth" in newest:
        drawn.append(_growth(newest["growth"], folder))
    return drawn


def _by_engine(
    content: Mapping[str, Any], field: str
) -> tuple[list[str], dict[str, dict[str, float]]]:
    workloads = list(dict.fromkeys(row["workload"] for row in content["results"]))
    values: dict[str, dict[str, float]] = {}
    for row in content["results"]:
        if row.get(field) is not None:
            values.setdefault(row["engine"], {})[row["workload"]] = row[field]
    return workloads, values


def _bars(
    workloads: Sequence[str],
    series: Mapping[str, Mapping[str, float]],
    label: str,
    *,
    logarithmic: bool = False,
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        heights = [values.get(workload, 0.0) for workload in workloads]
        axes.bar([at + number * width for at in range(len(workloads))], heights, width, label=name)
    axes.set_xticks(
        [at + 0.4 - width / 2 for at in range(len(workloads))], workloads, rotation=40, ha="right"
    )
    axes.set_ylabel(label)
    if logarithmic:
        axes.set_yscale("log")
    axes.legend(ncols=4, fontsize="small")
    return figure


def _save(figure: Any, folder: Path, name: str) -> str:
    figure.savefig(folder / name, metadata={"Date": None})
    return name


def _throughput(content: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    workloads, values = _by_engine(content, "programs_per_second")
    best = {
        workload: max(
            (
                speeds.get(workload, 0.0)
                for engine, speeds in values.items()
                if not engine.startswith("asgl")
            ),
            default=0.0,
        )
        for workload in workloads
    }
    relative = {
        engine: {
            workload: speed / best[workload] for workload, speed in speeds.items() if best[workload]
        }
        for engine, speeds in values.items()
    }
    figure = _bars(workloads, relative, "programs per second over the best peer's")
    figure.axes[0].axhline(1.0, color="black", linewidth=0.8)
    return "Throughput relative to the best peer", _save(figure, folder, "throughput.svg")


def _latency(content: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    workloads, middle = _by_engine(content, "latency_p50")
    _, tail = _by_engine(content, "latency_p99")
    series = {
        f"{engine} {name}": values[engine]
        for engine in middle
        for name, values in (("p50", middle), ("p99", tail))
    }
    return "Latency of a program, median and 99th percentile", _save(
        _bars(workloads, series, "seconds", logarithmic=True), folder, "latency.svg"
    )


def _hit_rate(content: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    workloads, rates = _by_engine(content, "hit_rate")
    _, optimal = _by_engine(content, "optimal_hit_rate")
    return "Cache hit rate against the optimum", _save(
        _bars(
            workloads,
            {**rates, "optimum": optimal.get("asgl", {})},
            "share of prompt tokens found in the cache",
        ),
        folder,
        "hit-rate.svg",
    )


def _growth(content: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(row["workload"] for row in content["results"]))
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, workload in zip(
        figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True
    ):
        rows = [
            row
            for row in content["results"]
            if row["workload"] == workload and row.get("programs_per_second")
        ]
        for engine in dict.fromkeys(row["engine"] for row in rows):
            points = [
                (row["concurrency"], row["programs_per_second"])
                for row in rows
                if row["engine"] == engine
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=engine)
        axes.set_xscale("log", base=2)
        axes.set_title(workload)
        axes.set_xlabel("programs at once")
        axes.set_ylabel("programs per second")
        axes.legend(fontsize="small")
    return "Growth with the number of programs at once", _save(figure, folder, "growth.svg")
