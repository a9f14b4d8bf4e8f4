"""Few-shot questions: a prefix of worked examples that many questions share."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from bench import data
from bench.client import Client, Options
from bench.workloads.base import Workload

_SUBJECTS = 4
_LETTERS = "ABCD"


class Question(NamedTuple):
    """`prompt` ends where the answer begins."""

    prompt: str
    choices: tuple[str, ...]
    right: int


# --- multiple choice, in MMLU's shape: per subject five shots, one token out ----------------------


def _choice_question(problem: data.Problem, generator: random.Random) -> tuple[str, int]:
    """A GSM8K question with four numbers to choose from, one of them right."""
    wrong = [problem.number + step for step in (-10, -5, -2, -1, 1, 2, 3, 5, 10, 20)]
    options = generator.sample(wrong, 3)
    right = generator.randrange(4)
    options.insert(right, problem.number)
    lines = "\n".join(
        f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=True)
    )
    return f"{problem.question}\n{lines}\nAnswer:", right


def _mcq_items(count: int) -> Sequence[Question]:
    generator = random.Random(1)
    problems = data.gsm8k()
    items = []
    subjects = min(_SUBJECTS, max(count // 4, 1))
    for subject in range(subjects):
        shots = []
        for problem in problems[subject * 5 : subject * 5 + 5]:
            text, right = _choice_question(problem, generator)
            shots.append(f"{text} {_LETTERS[right]}\n\n")
        head = (
            f"The following are multiple choice questions about arithmetic, part {subject + 1}.\n\n"
            + "".join(shots)
        )
        first = 100 + subject * 100
        for problem in problems[first : first + -(-count // subjects)]:
            text, right = _choice_question(problem, generator)
            items.append(Question(head + text, tuple(_LETTERS), right))
    generator.shuffle(items)
    return items[:count]


async def _mcq(client: Client, item: Question) -> str:
    return await client.prompt(item.prompt).gen(Options(max_tokens=1, exact=True))


MCQ = Workload(
    "few-shot-mcq",
    "4 subjects, 5 shots each shared by its questions; one token out (MMLU's shape)",
    _mcq_items,
    _mcq,
    32,
    lambda item, answer: answer.strip() == _LETTERS[item.right],
)


# --- selection, in HellaSwag's shape: twenty shots shared by all, four endings to choose from -----


def _select_items(count: int) -> Sequence[Question]:
    """Lines of Shakespeare, and of four next lines which is the right one."""
    generator = random.Random(2)
    lines = [line for line in data.shakespeare().splitlines() if 30 <= len(line) <= 70]
    at = 0

    def question() -> tuple[str, tuple[str, ...], int]:
        nonlocal at
        at += 7
        endings = [" " + generator.choice(lines) for _ in range(3)]
        right = generator.randrange(4)
        endings.insert(right, " " + lines[at + 3])
        return (
            f"Passage: {lines[at]} {lines[at + 1]} {lines[at + 2]}\nNext line:",
            tuple(endings),
            right,
        )

    shots = [question() for _ in range(20)]
    head = "".join(f"{text}{endings[right]}\n\n" for text, endings, right in shots)
    return [
        Question(head + text, endings, right)
        for text, endings, right in (question() for _ in range(count))
    ]


async def _select(client: Client, item: Question) -> int:
    return await client.prompt(item.prompt).select(item.choices)


SELECT = Workload(
    "few-shot-select",
    "20 shots shared by all; the likeliest of 4 endings (HellaSwag's shape)",
    _select_items,
    _select,
    40,
    lambda item, answer: answer == item.right,
)


# --- reasoning: GSM8K, five shots -----------------------------------------------------------------


def _reasoning_items(count: int) -> Sequence[tuple[str, int]]:
    problems = data.gsm8k()
    head = "".join(
        f"Question: {shot.question}\nAnswer: {shot.reasoning}\nThe answer is {shot.number}.\n\n"
        for shot in problems[:5]
    )
    return [
        (f"{head}Question: {problem.question}\nAnswer:", problem.number)
        for problem in problems[5 : 5 + count]
    ]


async def _reasoning(client: Client, item: tuple[str, int]) -> str:
    return await client.prompt(item[0]).gen(Options(max_tokens=200, stop=("Question",)))


def _last_number(text: str) -> int | None:
    said = re.search(r"The answer is \$?(-?[\d,]*\d)", text)
    return int(said[1].replace(",", "")) if said else None


REASONING = Workload(
    "few-shot-gsm8k",
    "5 shots shared by all; up to 200 tokens of reasoning",
    _reasoning_items,
    _reasoning,
    12,
    lambda item, answer: _last_number(answer) == item[1],
)
