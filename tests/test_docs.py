"""Every block of Python in README.md and docs/ runs, in order, page by page.

The blocks of a page share their names. One with `await`, `async with` or `async for` at its top
level runs in an event loop, the same for all of the page; others run outside of it, so that
`asyncio.run` works. What a reader need not see stands before the block that needs it, in a comment:

    <!-- setup
    rt = await stack.enter_async_context(asgl.Runtime("smollm2-135m"))
    -->

`stack` is an AsyncExitStack that is closed at the end of the page. Functions of a block whose names
begin with "test" are called. A page that opens a Runtime needs the real model.
"""

from __future__ import annotations

import ast
import asyncio
import codeop
import inspect
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^(?:```python\n(?P<shown>.*?)^```|<!-- setup\n(?P<hidden>.*?)^-->)", re.MULTILINE | re.DOTALL
)
_OPENS_A_MODEL = re.compile(r"(?<!Scripted)Runtime\(")


class Block(NamedTuple):
    line: int
    code: str


def blocks_of(page: str) -> list[Block]:
    return [
        Block(page.count("\n", 0, found.start()) + 2, found["shown"] or found["hidden"] or "")
        for found in _BLOCK.finditer(page)
    ]


def pages() -> list[Any]:
    """A parameter for each page that has Python."""
    found: list[Any] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = blocks_of(path.read_text(encoding="utf-8"))
        if blocks:
            model = any(_OPENS_A_MODEL.search(block.code) for block in blocks)
            marks = [pytest.mark.model, pytest.mark.timeout(300)] if model else []
            found.append(pytest.param(path, blocks, marks=marks, id=str(path.relative_to(ROOT))))
    return found


def run(path: str, blocks: list[Block]) -> dict[str, Any]:
    """Runs the blocks of a page; the names that they leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        stack = names["stack"] = AsyncExitStack()
        try:
            for block in blocks:
                before = set(names)
                execute(compiled(path, block), names, runner)
                for name in [
                    name for name in names if name.startswith("test") and name not in before
                ]:
                    result = names[name]()
                    if inspect.iscoroutine(result):
                        runner.run(result)
        finally:
            runner.run(stack.aclose())
    return names


def compiled(path: str, block: Block) -> Any:
    source = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
    return compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def execute(code: Any, names: dict[str, Any], runner: asyncio.Runner) -> None:
    result = eval(code, names)
    if inspect.iscoroutine(result):
        runner.run(result)


@pytest.mark.parametrize(("path", "blocks"), pages())
def test_page(
    path: Path, blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a page may write files
    run(str(path), blocks)


PAGE = """
Text.

<!-- setup
import asyncio
seen = []
-->

```python
async def main():
    await asyncio.sleep(0)
    seen.append("outside")

asyncio.run(main())
```

```sh
not python
```

```python
await asyncio.sleep(0)
seen.append("inside")
stack.callback(seen.append, "closed")

async def test_something():
    seen.append("tested")
```
"""


def test_blocks_run_in_order_and_share_their_names() -> None:
    names = run("page", blocks_of(PAGE))
    assert names["seen"] == ["outside", "inside", "tested", "closed"]
    assert [block.line for block in blocks_of(PAGE)] == [5, 10, 22]


def test_an_error_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("page.md", blocks_of("a\n\n```python\nx = 1\nx / 0\n```\n"))
    trace = caught.tb
    while trace.tb_next is not None:
        trace = trace.tb_next
    assert (trace.tb_frame.f_code.co_filename, trace.tb_lineno) == ("page.md", 5)


def test_there_are_pages() -> None:
    assert any("README" in page.id for page in pages())


def test_the_tutorial_can_be_typed_in_at_the_prompt() -> None:
    """There a blank line ends what is indented, and nothing else does."""
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as `python -m asyncio` does
    for block in blocks_of((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        typed: list[str] = []
        for number, line in enumerate([*block.code.rstrip("\n").split("\n"), ""]):
            typed.append(line)
            try:
                if compiler("\n".join(typed), symbol="single") is not None:
                    typed.clear()
            except SyntaxError as error:
                pytest.fail(f"line {block.line + number}: {line}: {error}")
        assert typed == [], f"line {block.line}: the block is not complete"
