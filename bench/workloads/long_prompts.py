"""Long prompts: documents, conversations, extraction, and prefixes that many requests bring at
once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import data
from bench.client import Client, Options
from bench.workloads.base import Workload

# --- JSON from a document, by a regular expression ------------------------------------------------

FIELDS = (
    r'\{"title": "[A-Za-z ]{4,24}", "place": "[A-Za-z ]{4,16}", "year": [0-9]{4}, '
    r'"pages": [0-9]{2,3}, "old": (true|false)\}'
)
FIELDS_GBNF = (
    r'root ::= "{\"title\": \"" [A-Za-z ]{4,24} "\", \"place\": \"" [A-Za-z ]{4,16} "\", \"year\": '
    r'" [0-9]{4} '
    r'", \"pages\": " [0-9]{2,3} ", \"old\": " ("true" | "false") "}"'
)


def _json_items(count: int) -> Sequence[str]:
    document = data.passage(7, 2200)  # about 3,000 tokens, shared by all
    return [
        f"{document}\n\nDescribe the part of the text about {data.passage(300 + number, 3)!r} as "
        "JSON: "
        for number in range(count)
    ]


async def _json(client: Client, item: str) -> str:
    return await client.prompt(item).gen(Options(max_tokens=128, regex=FIELDS, gbnf=FIELDS_GBNF))


JSON_REGEX = Workload(
    "json-regex",
    "a document of 3,000 tokens shared by all; 5 fields that match a regular expression",
    _json_items,
    _json,
    16,
)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 4, "maxLength": 24},
        "place": {"type": "string", "minLength": 4, "maxLength": 16},
        "year": {"type": "integer", "minimum": 1000, "maximum": 9999},
        "kind": {"enum": ["comedy", "tragedy", "history"]},
        "old": {"type": "boolean"},
    },
    "required": ["title", "place", "year", "kind", "old"],
    "additionalProperties": False,
}


async def _json_by_schema(client: Client, item: str) -> str:
    return await client.prompt(item).gen(Options(max_tokens=128, schema=SCHEMA))


JSON_SCHEMA = Workload(
    "json-schema",
    "the same document; an object of 5 fields that a JSON schema describes",
    _json_items,
    _json_by_schema,
    16,
)


# --- conversations --------------------------------------------------------------------------------


class Talk(NamedTuple):
    turns: tuple[str, ...]
    tokens: tuple[int, ...]


def _talks(count: int, words: int, tokens: Sequence[int]) -> Sequence[Talk]:
    """Four turns of one to two times so many words in; seeded text in the paper's shape."""
    return [
        Talk(
            tuple(
                data.passage(number * 4 + turn, words + words // 5 * ((number + turn) % 5))
                for turn in range(4)
            ),
            tuple(tokens[(number + turn) % len(tokens)] for turn in range(4)),
        )
        for number in range(count)
    ]


async def _chat(client: Client, item: Talk) -> None:
    s = client.prompt("A conversation.\n")
    for turn, tokens in zip(item.turns, item.tokens, strict=True):
        s.append(f"\nUser: {turn}\nAssistant:")
        await s.gen(Options(max_tokens=tokens, exact=True))


CHAT_SHORT = Workload(
    "chat-short",
    "4 turns of 256-512 tokens in, 4-8 out",
    lambda count: _talks(count, 190, (4, 5, 6, 7, 8)),
    _chat,
    4,
)
CHAT_LONG = Workload(
    "chat-long",
    "4 turns of 64-128 tokens in, 64 out (a quarter of the paper's lengths)",
    lambda count: _talks(count, 48, (64,)),
    _chat,
    4,
)


# --- questions about several documents ------------------------------------------------------------


def _document_items(count: int) -> Sequence[tuple[str, tuple[str, ...]]]:
    documents = "".join(
        f"Document {number}: {data.passage(2000 + number, 120)}\n\n" for number in range(10)
    )
    return [
        (
            documents,
            tuple(
                f"What does document {(program + question) % 10} say about "
                f"{data.passage(program * 8 + question, 2)!r}?"
                for question in range(4)
            ),
        )
        for program in range(count)
    ]


async def _ask_documents(client: Client, item: tuple[str, tuple[str, ...]]) -> int:
    documents, questions = item
    s = client.prompt(documents)
    async with s.fork(len(questions)) as branches:
        for b, question in zip(branches, questions, strict=True):
            b.append(f"Question: {question}\nAnswer:")
        answers = await asyncio.gather(
            *(b.gen(Options(max_tokens=32, exact=True)) for b in branches)
        )
    return len(answers)


DOCUMENTS = Workload(
    "multi-document",
    "10 documents shared by all, 4 questions a program in parallel, 32 out",
    _document_items,
    _ask_documents,
    10,
)


# --- prefixes shared inside one batch -------------------------------------------------------------


_PREFIXES = 4


def _in_batch_items(count: int) -> Sequence[str]:
    """Four prefixes of about 512 tokens, each with tails of about 64; those of one prefix come
    together."""
    per_prefix = -(-count // _PREFIXES)
    items = [
        data.passage(4000 + prefix, 370) + " " + data.passage(60_000 + prefix * 40 + tail, 46)
        for prefix in range(_PREFIXES)
        for tail in range(per_prefix)
    ]
    return items[:: max(len(items) // count, 1)][:count] if count < _PREFIXES else items[:count]


async def _one_token(client: Client, item: str) -> str:
    return await client.prompt(item).gen(Options(max_tokens=1, exact=True))


IN_BATCH = Workload(
    "in-batch-prefix",
    "4 prefixes of 512 tokens, 10 requests with 64 more each, all at once; 1 out",
    _in_batch_items,
    _one_token,
    40,
)
