"""The benchmarks' command line.

python -m bench list
python -m bench run --engine asgl --engine openvino --workload react --rounds 3 --name react
python -m bench profile
python -m bench report
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from bench import results
from bench.ablations import ABLATIONS, VARIANTS
from bench.peers.all import PEERS
from bench.workloads import WORKLOADS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="asgl's benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="workloads and engines")
    commands.add_parser("report", help="results to docs/benchmarks.md")
    spent = commands.add_parser(
        "profile", help="where asgl's time goes, and the largest losses; writes a result file"
    )
    spent.add_argument(
        "--workload",
        action="append",
        choices=list(WORKLOADS),
        help="may be repeated; all of them by default",
    )
    spent.add_argument("--scale", type=float, default=1.0, help="share of each workload's programs")
    run = commands.add_parser(
        "run", help="run workloads on engines in turn, and write a result file"
    )
    run.add_argument(
        "--engine",
        action="append",
        help="may be repeated; 'peers' and 'ablations' stand for all of them",
    )
    run.add_argument(
        "--workload",
        action="append",
        choices=list(WORKLOADS),
        help="may be repeated; all of them by default",
    )
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--scale", type=float, default=1.0, help="share of each workload's programs")
    run.add_argument(
        "--limit", type=float, default=30.0, help="seconds after which a run is broken off"
    )
    run.add_argument(
        "--seconds",
        type=float,
        help="begin no further workload after so many; they are listed as left out",
    )
    run.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        help="programs at once; each workload's own by default",
    )
    run.add_argument(
        "--kind",
        choices=("race", "ablations", "growth"),
        default="race",
        help="which part of the report it is for",
    )
    run.add_argument("--name", help="of the result file; the kind by default")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the result file: run the workloads that it lacks",
    )
    options = parser.parse_args(arguments)
    if options.command == "list":
        for workload in WORKLOADS.values():
            print(f"{workload.name:<22} {workload.programs:>4} programs   {workload.about}")
        print("\nengines: " + ", ".join([*VARIANTS, *PEERS]))
    elif options.command == "report":
        from bench.report import write_report

        print(write_report())
    elif options.command == "profile":
        _profile(options)
    else:
        _run(options)


def _profile(options: argparse.Namespace) -> None:
    from bench import breakdown
    from bench.race import Settings

    content = asyncio.run(
        breakdown.profile(
            Settings(workloads=options.workload or list(WORKLOADS), scale=options.scale)
        )
    )
    print(breakdown.text(content))
    print(results.write("profile", content))


def _run(options: argparse.Namespace) -> None:
    # a harness that is told to end stops the peers that it has started
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from bench.race import Settings, race

    engines: list[str] = []
    for name in options.engine or ["asgl"]:
        engines += {"peers": PEERS, "ablations": ABLATIONS}.get(name, (name,))
    settings = Settings(
        engines=list(dict.fromkeys(engines)),
        workloads=options.workload or list(WORKLOADS),
        rounds=options.rounds,
        scale=options.scale,
        limit=options.limit,
        concurrency=options.concurrency or (None,),
        seconds=options.seconds,
    )
    name = options.name or options.kind
    earlier = results.resumed(name, settings.asked) if options.resume else ()
    try:
        content = asyncio.run(
            race(
                settings,
                options.kind,
                earlier=earlier,
                save=lambda content: results.write(name, content),
            )
        )
    except KeyboardInterrupt:
        print(
            "interrupted: the same command with --resume goes on after the workloads that are done",
            file=sys.stderr,
        )
        sys.exit(130)
    print(results.write(name, content))


if __name__ == "__main__":
    main()
