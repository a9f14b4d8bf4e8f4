"""Random and mutated schemas, regular expressions and Lark grammars: none of them may end the
process, and whatever is wrong with one is a GrammarError.

    python tests/support/fuzz_grammars.py --seconds 600      prints what failed, with its seed
    python tests/support/fuzz_grammars.py --seed 17          one source, in this process

Sources are tried in subprocesses, which say which one they are at: so it is known which one a
process died of.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asgl.errors import GrammarError
from asgl.execution.grammar import Compiler
from asgl.types import GrammarSource

BATCH = 200
TOKENS = 30
"""So many tokens of a text are generated from what compiles."""

SCHEMAS: list[Any] = [
    {"const": -(2**63)},
    {"type": "number", "minimum": -1e20, "multipleOf": 0.5},
    {"type": "integer", "minimum": 3, "maximum": 10**19, "multipleOf": 7},
    {"type": "string", "pattern": r"^(a|b)*[^\w]\d{2,3}$", "maxLength": 9},
    {"type": "string", "format": "date-time"},
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"enum": [1, "x", None]}},
        "required": ["a"],
        "patternProperties": {"^x": {"type": "boolean"}},
        "additionalProperties": {"type": "array", "items": {}},
        "$defs": {"x": {"oneOf": [{"type": "null"}, {"$ref": "#"}]}},
    },
    {"allOf": [{"type": "array", "minItems": 2}, {"prefixItems": [{}, {"type": "integer"}]}]},
    {"anyOf": [{"minimum": 1}, {"maxLength": 3}, {"required": ["q"]}], "maxProperties": 2},
]
REGEXES = [
    r"a{1,3}(b|c)*\d+",
    r"[\p{L}&&[^a-z]]{0,100}",
    r"(?i:straße|ß)+",
    r"((x?){20}y){30}",
    r"[\w\s-]{3,}?\x{1F600}",
    r".*(a.{50})*b",
]
GRAMMARS = [
    'start: a+ "x"?\na: /[0-9]{1,3}/ | "(" a ")"',
    'start: A B | start "," A\nA: /a*/ & ~"aa"\nB[lazy]: "b"',
    'start: %json {"type": "integer", "minimum": 3} "." w{1,9}\nw[max_tokens=3]: /[a-z]+/',
    '%import common.INT\n%ignore / +/\nstart: INT ("+" INT)*',
    'start: <[1]> "x" @g\n%llguidance {"no_forcing": true}',
]
SIGNS = [
    *"()[]{}|*+?^$.\\-,:\"'/&~<>%@# \n0123456789abxAZé中\x00\x7f😀",
    "1e999", "-9223372036854775808", "18446744073709551616", "{0,100000}", "\\p{Han}", "[^", "(?",
    "%json {", "start", '"$ref": "#"', "null", "[[]]", "\\u0000", "\\ud800", "99999999999",
]  # fmt: skip


class Bytes:
    """A token for each byte."""

    vocabulary = 256
    control_tokens: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def source(seed: int) -> GrammarSource:
    """A source by chance, the same for the same seed."""
    chance = random.Random(seed)
    kind = chance.choice(["regex", "json_schema", "grammar"])
    if chance.random() < 0.1:
        return GrammarSource(kind, deep(chance, kind, chance.choice([5, 100, 600, 3000])))
    if kind == "json_schema":
        schema: Any = json.loads(json.dumps(chance.choice(SCHEMAS)))
        for _ in range(chance.randint(0, 5)):
            schema = changed(chance, schema, 0)
        text = json.dumps(schema)
        return GrammarSource(kind, mutated(chance, text) if chance.random() < 0.2 else text)
    text = chance.choice(REGEXES if kind == "regex" else GRAMMARS)
    return GrammarSource(kind, mutated(chance, text))


def mutated(chance: random.Random, text: str) -> str:
    """The text with signs put in, taken out and repeated."""
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randint(0, len(text)), chance.randint(0, 8)
        part = text[at : at + length]
        part = chance.choice(["", part * chance.randint(2, 50), part[::-1], chance.choice(SIGNS)])
        text = text[:at] + part + text[at + chance.choice([0, length]) :]
    return text[:20_000]


def changed(chance: random.Random, value: Any, depth: int) -> Any:
    """The schema with one of its values changed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.3:
            value = {**value, **chance.choice(SCHEMAS)}
        return {**value, key: changed(chance, value[key], depth + 1)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], changed(chance, value[at], depth + 1), *value[at + 1 :]]
    return chance.choice(
        [
            chance.choice(SCHEMAS),
            chance.choice([2**53, -(2**63), 2**64, 10**30, -1e20, 1e308, 5e-324, 0, -1, 0.1]),
            chance.choice([True, False, None, "", "x", "#", "#/$defs/x", [], {}, "date", "ipv6"]),
            chance.choice(REGEXES),
            [value] * chance.randint(0, 3),
        ]
    )


def deep(chance: random.Random, kind: str, depth: int) -> str:
    """A source that is nested or chained so deeply."""
    if kind == "regex":
        opening, closing = chance.choice(
            [("(", ")"), ("(a|", ")*"), ("(?:b", "){1,2}"), ("[", "]")]
        )
        return opening * depth + "x" + closing * depth
    if kind == "grammar":
        link = chance.choice(['"a" {}', "{}+", '{} | "b"', '"(" {} ")" | ""', "[{}]", "{} {}"])
        name = chance.choice(["r", "R"])
        rules = [f"{name}{i}: " + link.replace("{}", f"{name}{i + 1}") for i in range(depth)]
        return "\n".join([f"start: {name}0", *rules, f'{name}{depth}: "x"'])
    key = chance.choice(["object", "array", "anyOf", "allOf", "$ref", "through"])
    if key in ("$ref", "through"):
        inner = (lambda link: link) if key == "$ref" else _in_object
        links = {str(i): inner({"$ref": f"#/$defs/{i + 1}"}) for i in range(depth)}
        return json.dumps({"$ref": "#/$defs/0", "$defs": {**links, str(depth): {"type": "null"}}})
    before, after = {
        "object": ('{"type": "object", "required": ["a"], "properties": {"a": ', "}}"),
        "array": ('{"type": "array", "minItems": 1, "items": ', "}"),
        "anyOf": ('{"anyOf": [{"type": "string"}, ', "]}"),
        "allOf": ('{"allOf": [', "]}"),
    }[key]
    return before * depth + '{"type": "null"}' + after * depth


def _in_object(schema: Any) -> Any:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def attempt(compiler: Compiler, seed: int) -> None:
    """Compiles one source, and generates a few tokens. Any exception but a GrammarError is ours."""
    chance = random.Random(seed)
    try:
        matcher = compiler.compile(source(seed)).matcher(())
    except GrammarError:
        return
    for _ in range(TOKENS):
        if matcher.complete:
            return
        mask = int.from_bytes(matcher.mask(), "little")
        matcher.push(chance.choice([token for token in range(256) if mask >> token & 1]))


def work(first: int, last: int) -> None:
    """Tries the sources of these seeds, each after its seed was written out."""
    compiler = Compiler(Bytes(), kept=1)
    for seed in range(first, last):
        print(seed, flush=True)
        attempt(compiler, seed)
    print("done", flush=True)


def fuzz(first: int, count: int, seconds: float = 300) -> Iterator[str]:
    """Tries so many sources in subprocesses, and gives what failed: how, and with which seed.

    seconds: of a subprocess, which tries 200 sources.
    """
    seed, end = first, first + count
    while seed < end:
        batch = min(seed + BATCH, end)
        command = [sys.executable, str(Path(__file__)), "--work", str(seed), str(batch)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            out, problem = done.stdout, f"ended with {done.returncode}: {done.stderr[-1000:]}"
        except subprocess.TimeoutExpired as error:
            out = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            problem = f"took more than {seconds:g} seconds"
        lines = out.split()
        if lines and lines[-1] == "done":
            seed = batch
            continue
        at = int(lines[-1]) if lines else seed
        yield f"seed {at} {problem}\n{source(at)!r:.500}"
        seed = at + 1


def soak(seconds: float, first: int = 0) -> list[str]:
    """Fuzzes for so long, and gives what failed."""
    began, seed = time.monotonic(), first
    failures: list[str] = []
    while time.monotonic() - began < seconds:
        for failure in fuzz(seed, BATCH):
            print(failure, flush=True)
            failures.append(failure)
        seed += BATCH
    print(f"{seed - first} sources, {len(failures)} failures")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--work", type=int, nargs=2)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
    elif arguments.seed is not None:
        print(source(arguments.seed))
        attempt(Compiler(Bytes()), arguments.seed)
    else:
        sys.exit(bool(soak(arguments.seconds, arguments.first)))


if __name__ == "__main__":
    main()
