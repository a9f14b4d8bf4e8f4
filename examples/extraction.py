"""Facts out of notes, as objects of a pydantic model: all notes at once, after instructions that
are computed once.

Run it with `python examples/extraction.py [model]`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel, Field

import asgl

NOTES = [
    "Anna, 31, came all the way from Oslo and wants to stay for three nights.",
    "Mr. Okafor (58) from Lagos will only stay one night.",
    "A room for two nights for Mei, who is 24 and lives in Taipei.",
]
EXAMPLE = "Note: Jon, a man of 45 from Dublin, stays five nights.\nJSON: "
ANSWER = '{"name": "Jon", "age": 45, "city": "Dublin", "nights": 5, "kind": "guest"}\n\n'


class Guest(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    city: str = Field(max_length=20)
    nights: int = Field(ge=1, le=30)
    kind: Literal["guest"]


async def extract(s: asgl.PromptStream, note: str) -> Guest:
    s += f"Note: {note}\nJSON: "
    return await s.gen("guest", json_schema=Guest, max_tokens=100, temperature=0)


async def main(model: str = "smollm2-135m") -> None:
    async with asgl.Runtime(model) as rt:
        s = rt.prompt("Write what each note says as JSON.\n\n" + EXAMPLE + ANSWER)
        for note, guest in zip(NOTES, await s.map(extract, NOTES), strict=True):
            print(f"{note}\n    {guest!r}")
        seen = rt.statistics()
        print(
            f"\n{seen.generated_tokens} tokens, {seen.forced_tokens} of them forced; {seen.steps} "
            "steps; "
            f"{seen.cached_tokens} of {seen.prompt_tokens} prompt tokens came from the cache"
        )


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except asgl.AsglError as error:
        sys.exit(f"error: {error}")
