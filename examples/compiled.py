"""A program that is compiled: traced once, moved about for a longer common beginning, and run over
many mails.

Run it with `python examples/compiled.py [model]`.
"""

from __future__ import annotations

import asyncio
import sys

import asgl

GUIDE = (
    "You sort the mail of a shop that sells lamps. There are three teams. Billing handles "
    "invoices, refunds, vouchers and cards "
    "that were charged twice. Shipping handles parcels that are late, lost, or broken on arrival. "
    "Product handles questions on "
    "how a lamp is put together, which bulb it takes, and wishes for new ones.\n\n"
)
MAILS = [
    "My card was charged twice for one lamp.",
    "Which bulb does the small reading lamp take?",
    "The parcel should have been here on Monday, and nobody can tell me where it is.",
    "The glass was in a hundred pieces when I opened the box.",
    "Could you make the tall one in green?",
    "The voucher from last year does not work.",
]


@asgl.function
async def triage(s: asgl.PromptStream, mail: str) -> str:
    s += f"Mail: {mail}\n\n"
    s += GUIDE
    s += "The mail goes to the team"
    return await s.select("team", [" Billing", " Shipping", " Product"])


async def sort(rt: asgl.Runtime, graph: asgl.Graph[str], title: str) -> None:
    await rt.flush_cache()
    before = rt.statistics()
    streams = await graph.batch(rt, MAILS, progress=False)
    after = rt.statistics()
    cached, tokens = (
        after.cached_tokens - before.cached_tokens,
        after.prompt_tokens - before.prompt_tokens,
    )
    print(f"\n{title}: {cached} of {tokens} prompt tokens came from the cache")
    for mail, s in zip(MAILS, streams, strict=True):
        print(f"   {s.returned:<10} {mail}")


async def main(model: str = "smollm2-135m") -> None:
    graph = triage.graph(
        mail=asgl.arg
    )  # needs no model: the program runs once, and what it submits is written down
    moved = graph.reordered()  # the guide, the same for all, goes before the mail
    print(graph)
    print(moved)
    async with asgl.Runtime(model) as rt:
        await sort(rt, graph, "As it is written")
        await sort(rt, moved, "With the guide first")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except asgl.AsglError as error:
        sys.exit(f"error: {error}")
