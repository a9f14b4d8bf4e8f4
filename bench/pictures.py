"""The pictures of docs/pictures/: the live view as SVG, and the page of a trace as PNG.

    python -m bench.pictures

Runs programs on the small model, and draws what their trace says. The page is photographed by
Chromium, which Playwright drives: it must be installed.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from io import StringIO
from pathlib import Path
from typing import Literal

from rich.console import Console

import asgl
from asgl.trace import Event, StepEvent, read
from asgl.trace.model import Model
from asgl.viewer import View
from asgl.viewer.page import page_of

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
_QUESTIONS = ("Why is the sky blue?", "How do birds find south?", "What makes bread rise?")


@asgl.tool
async def altitude(city: Literal["Lyon", "Oslo"]) -> int:
    """The altitude of a city, in metres.

    Args:
        city: Its name.
    """
    await asyncio.sleep(0.5)
    return {"Lyon": 173}[city]


@asgl.function
async def thoughts(s: asgl.PromptStream, question: str) -> None:
    """A tree of thought: ideas, what each leads to, and a choice."""
    s += f"Question: {question}\nShort answers:"
    async with s.fork(3) as branches:
        for number, branch in enumerate(branches, 1):
            branch += f"\n{number}."
            branch.gen("idea", max_tokens=24, stop="\n", temperature=0.8, logprobs=3)
    s.join(branches)
    await s.select("best", [" first", " second", " third"])


@asgl.function
async def agent(s: asgl.PromptStream, city: str) -> None:
    """Calls a tool, and answers."""
    s += f"How high is {city}?"
    await s.call_tools([altitude], max_tokens=40, on_error="program")
    await s.gen("answer", max_tokens=20)


def _high(text: str) -> bool | str:
    return text > "4" or f"{text} is too low"


@asgl.function
async def grade(s: asgl.PromptStream, work: str) -> None:
    """Grades, and tries again."""
    s += f"Work: {work}\nGrade from 1 to 9: "
    await s.gen("grade", regex="[1-9]", validate=_high, retries=3)
    s += ". Because"
    await s.gen("why", max_tokens=30)


async def trace_to(path: Path) -> None:
    """Runs all of them at once."""
    with asgl.JsonlTracer(path) as tracer:
        async with asgl.Runtime(
            "smollm2-135m",
            tracers=[tracer],
            sampling=asgl.SamplingParams(seed=3),
            kv_cache_tokens=1200,
        ) as rt:
            await asyncio.gather(
                thoughts.batch(rt, _QUESTIONS, progress=False),
                agent.batch(rt, ["Lyon", "Oslo"], on_error="return", progress=False),
                grade.batch(rt, ["2 + 2 = 5", "7 * 6 = 42"], on_error="return", progress=False),
            )


def svg_of(events: list[Event], width: int, height: int) -> str:
    """The view after these events."""
    model = Model(events)
    console = Console(record=True, file=StringIO(), width=width, force_terminal=True)
    console.print(View(model, keys=True).frame(width, height, model.now), end="")
    drawn = console.export_svg(title="asgl", unique_id="view")
    # rich names fonts of another host: the reader's own will do
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


def photograph(page: str, target: Path) -> None:
    """The page as Chromium shows it."""
    from playwright.sync_api import sync_playwright  # here: only this needs it

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path = Path(folder) / "page.html"
        path.write_text(page, encoding="utf-8")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1200, "height": 1150})
        shown.goto(path.as_uri())
        shown.wait_for_selector("html[data-ready=yes]")
        shown.locator("#tree").focus()
        shown.keyboard.press("Home")
        shown.keyboard.press("ArrowDown")
        shown.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        shown.screenshot(path=target)
        browser.close()


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        asyncio.run(trace_to(path))
        events = read(path)
    steps = [number for number, event in enumerate(events) if isinstance(event, StepEvent)]
    middle = steps[int(len(steps) * 0.6)]
    drawn = svg_of(events[: middle + 1], 112, 24)
    (PICTURES / "view.svg").write_text(drawn, encoding="utf-8")
    photograph(page_of(Model(events), "asgl: thoughts"), PICTURES / "page.png")
    print(*sorted(PICTURES.iterdir()), sep="\n", file=sys.stdout)


if __name__ == "__main__":
    main()
