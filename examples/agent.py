"""An agent: the model looks things up with tools until it answers, and is told when a tool fails.

Run it with `python examples/agent.py [model]`; it takes seconds on a laptop. The small default
model calls tools in the right form, always, since its calls are constrained to their schemas;
whether it calls the right one is another matter.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import asgl

City = Literal["Lyon", "Oslo", "Quito"]
ALTITUDES = {"Lyon": 173, "Quito": 2850}


@asgl.tool
async def altitude(city: City) -> int:
    """The altitude of a city, in metres.

    Args:
        city: Its name.
    """
    return ALTITUDES[city]  # of Oslo it knows nothing: the model is told of the KeyError


@asgl.tool
async def weather(city: City, day: Literal["today", "tomorrow"] = "today") -> dict[str, str]:
    """The weather in a city.

    Args:
        city: Its name.
        day: When.
    """
    await asyncio.sleep(
        0.01
    )  # tools are coroutines: whatever they wait for, nothing else waits for it
    return {"city": city, "day": day, "weather": "sunny"}


async def agent(s: asgl.PromptStream, question: str, most: int = 2) -> str:
    """Calls tools, `most` times at most, and then answers."""
    s.system(
        "You are a helpful assistant. Look things up with tools before you answer.",
        tools=[altitude, weather],
    )
    s.user(question)
    for _ in range(most):
        for call in await s.call_tools(
            [altitude, weather], timeout=5, max_tokens=60, temperature=0
        ):
            print(
                f"    {call.tool.name}({', '.join(map(repr, call.arguments.values()))}) -> "
                f"{call.result if call.error is None else repr(call.error)}"
            )
        here = s.mark()
        with s.role("assistant"):
            known = await s.select(
                None, ["Now I know enough to answer.", "I have to look up more."]
            )
        s.rewind(here)  # what was asked here leaves no trace
        if known.startswith("Now"):
            break
    s.user("Answer the question in one sentence, in words.")
    return await s.assistant(asgl.gen("answer", max_tokens=40, temperature=0))


async def main(model: str = "smollm2-135m") -> None:
    async with asgl.Runtime(model) as rt:
        for question in ("What is the weather in Lyon?", "How high is Oslo?"):
            print(question)
            print(f"    {await agent(rt.prompt(), question)}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except asgl.AsglError as error:
        sys.exit(f"error: {error}")
