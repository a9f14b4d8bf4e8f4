"""The pages of docs/: every public name is in the reference, every page in the table of contents,
no link leads nowhere, and the files and functions that pages name exist."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import asgl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
_HISTORY = ("log.md", "benchmarks.md")
"""Pages that say what was measured once. They may name what is gone."""
_MADE = {"docs/gpu-measured.md"}
"""Files that commands make."""
PRESENT = [page for page in PAGES if page.name not in _HISTORY]
_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)\n(?P<options>(?: {4}.*\n)*)", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"^```text\n.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
_STATION = re.compile(r"(?P<file>[\w/]+\.py):(?P<name>[A-Za-z_][\w.]*)")


class Described(NamedTuple):
    """What a directive of a page describes."""

    page: str
    name: str
    members: bool
    """With what belongs to it."""

    @property
    def value(self) -> Any:
        *modules, name = self.name.split(".")
        try:
            return importlib.import_module(self.name)
        except ModuleNotFoundError:
            return getattr(importlib.import_module(".".join(modules)), name)


def described() -> list[Described]:
    return [
        Described(page.name, found["name"], "members: false" not in found["options"])
        for page in sorted((DOCS / "reference").glob("*.md"))
        for found in _DIRECTIVE.finditer(page.read_text(encoding="utf-8"))
    ]


def names_of(one: Described) -> set[str]:
    """The names of `asgl` that it describes."""
    if (
        one.name.startswith("asgl.")
        and one.name.count(".") == 1
        and not inspect.ismodule(one.value)
    ):
        return {one.name.removeprefix("asgl.")}
    if one.members and inspect.ismodule(one.value):
        return {
            name
            for name, value in vars(one.value).items()
            if name in asgl.__all__ and getattr(asgl, name) is value
        }
    return set()


def undocumented(kind: type, source: dict[str, str]) -> list[str]:
    """The public members of a class that no docstring says anything of."""
    missing = [
        f"{kind.__name__}.{name}"
        for base in _our_own(kind)
        for name, member in vars(base).items()
        if not name.startswith("_")
        and (
            isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
        )
        and not (inspect.getdoc(getattr(kind, name)) or "").strip()
    ]
    return missing + [f"{kind.__name__}.{name}" for name, said in source.items() if not said]


def _our_own(kind: type) -> list[type]:
    """The class, and the parts that it is made of."""
    return [base for base in kind.__mro__ if base is kind or base.__module__.startswith("asgl.")]


def fields_of(kind: type) -> dict[str, str]:
    """The annotated public fields of a class, and the docstring that follows each: "" if none
    does."""
    (body,) = [
        node.body
        for node in ast.parse(inspect.getsource(inspect.getmodule(kind) or kind)).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    ]
    fields: dict[str, str] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith("_")
        ):
            said = (
                following.value.value
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                else ""
            )
            fields[node.target.id] = str(said)
    return fields


def headings_of(page: Path) -> set[str]:
    """The anchors of a page."""
    lines = _FENCED.sub("", page.read_text(encoding="utf-8")).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title)) for title in titles}


def broken_links(page: Path) -> list[str]:
    broken: list[str] = []
    for found in _LINK.finditer(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        to = page if not target else (page.parent / target).resolve()
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in headings_of(to)):
            broken.append(found["target"])
    return broken


def test_every_public_name_is_in_the_reference_once() -> None:
    found = [name for one in described() for name in names_of(one)]
    assert sorted(found) == sorted(asgl.__all__)


def test_the_names_that_the_reference_describes_exist() -> None:
    assert len(described()) > 40
    for one in described():
        assert one.value is not None


@pytest.mark.parametrize(
    "one", [one for one in described() if inspect.isclass(one.value)], ids=lambda one: one.name
)
def test_all_that_is_public_has_a_docstring(one: Described) -> None:
    assert (one.value.__doc__ or "").strip()
    assert undocumented(one.value, fields_of(one.value)) == []


def test_the_functions_and_modules_have_docstrings() -> None:
    for one in described():
        assert not callable(one.value) or (inspect.getdoc(one.value) or "").strip(), one.name
        assert not inspect.ismodule(one.value) or (one.value.__doc__ or "").strip(), one.name


def test_a_member_without_a_docstring_is_found() -> None:
    class Bare:
        def said(self) -> None:
            """Says."""

        def unsaid(self) -> None: ...

    assert undocumented(Bare, {"field": "", "other": "what it is"}) == ["Bare.unsaid", "Bare.field"]


@pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One title\n\n## And `another`\n", encoding="utf-8")
    page.write_text(
        "[a](other.md) [b](other.md#and-another) [c](nowhere.md) [d](other.md#no) [e](#gone) "
        "[f](https://x.y)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["nowhere.md", "other.md#no", "#gone"]


def test_the_table_of_contents_has_every_page() -> None:
    nav = re.findall(
        r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(nav) == len(set(nav))
    assert sorted(nav) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def named_files(page: Path) -> set[str]:
    """The files and folders that a page names in code quotes: what has a slash in it and ends like
    one. `NAME` stands for a name of the reader's own."""
    quoted = {found[1] for found in _CODE.finditer(_FENCED.sub("", page.read_text("utf-8")))}
    words = {word.partition(":")[0] for code in quoted for word in code.split()}
    return {
        word
        for word in words
        if "/" in word
        and _FILE.fullmatch(word)
        and (word.endswith("/") or Path(word).suffix in (".py", ".md", ".yml", ".toml"))
        and "NAME" not in word
    }


def missing_files(page: Path) -> list[str]:
    """Those that are neither in the repository, by their paths from its root, nor in the package,
    by their paths from `src/` or from the package itself."""
    roots = (ROOT, ROOT / "src", ROOT / "src" / "asgl")
    return sorted(
        name
        for name in named_files(page) - _MADE
        if not any((root / name).exists() for root in roots)
    )


def stations_of(text: str) -> list[tuple[str, str]]:
    """The functions and classes that a page names as `file:name`."""
    found = (_STATION.fullmatch(code[1]) for code in _CODE.finditer(text))
    return [(station["file"], station["name"]) for station in found if station is not None]


def stations(page: Path) -> list[tuple[str, str]]:
    return stations_of(page.read_text(encoding="utf-8"))


def is_defined(file: str, name: str) -> bool:
    """Whether the module `file`, below src/asgl/, defines the function or class `name`."""
    path = ROOT / "src" / "asgl" / file
    if not path.exists():
        return False
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        inside = [node for node in body if isinstance(node, kinds) and node.name == part]
        if not inside:
            return False
        body = inside[-1].body
    return True


def long_lines(page: Path) -> list[int]:
    """The numbers of lines over 100 columns. What a program printed may be wider, tables, and a
    command that stands alone on its line."""
    text = _PRINTED.sub(lambda block: "\n" * block[0].count("\n"), page.read_text("utf-8"))
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > 100 and not line.startswith("|") and not re.fullmatch(r" *`[^`]+`\S*", line)
    ]


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_and_functions_that_a_page_names_exist(page: Path) -> None:
    assert missing_files(page) == []
    assert [":".join(station) for station in stations(page) if not is_defined(*station)] == []


def test_the_life_of_a_request_has_its_stations() -> None:
    files = {file for file, _ in stations(DOCS / "life-of-a-request.md")}
    rooms = {file.partition("/")[0] for file in files if "/" in file}
    assert rooms >= {"language", "engine", "scheduling", "execution", "models", "kernels"}


@pytest.mark.model
def test_a_request_passes_the_stations_of_its_life() -> None:
    """Those of the way there and back, on a CPU; not those of cancelling and failing."""
    page = (DOCS / "life-of-a-request.md").read_text(encoding="utf-8")
    way = page.partition("## When it is cancelled")[0]
    called: set[str] = set()

    def hear(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.add(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")

    async def one_gen() -> None:
        sampling = asgl.SamplingParams(seed=1)
        async with asgl.Runtime("smollm2-135m", kernels="cpu", sampling=sampling) as rt:
            await rt.prompt("The capital of France is").gen("answer", max_tokens=4)

    threading.setprofile(hear)  # the device thread begins inside
    sys.setprofile(hear)
    try:
        asyncio.run(one_gen())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    package = Path(asgl.__file__).parent
    missed = [
        f"{file}:{name}"
        for file, name in stations_of(way)
        if not any(
            one == f"{package / file}:{name}" or one.startswith(f"{package / file}:{name}.")
            for one in called
        )
    ]
    assert missed == ["execution/cuda_runner.py:CudaRunner.launch"]


def test_contributing_names_files() -> None:
    assert len(named_files(DOCS / "contributing.md")) > 40


def test_a_file_and_a_function_that_are_gone_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`src/asgl/types.py`, `language/gone.py`, `asgl/engine`, `tests/nowhere/`, `a/b`, "
        "`models/NAME.py`, `language/handle.py:abandon`, `language/handle.py:Handle.cancel`, "
        "`language/handle.py:Handle.gone`, `bench/gone.py -v`\n",
        encoding="utf-8",
    )
    assert missing_files(page) == ["bench/gone.py", "language/gone.py", "tests/nowhere/"]
    assert [name for file, name in stations(page) if not is_defined(file, name)] == ["Handle.gone"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit(page: Path) -> None:
    assert long_lines(page) == []


def lines_of(files: Iterable[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_readme_says_how_large_the_code_is() -> None:
    source = ROOT / "src"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def said(pattern: str) -> int:
        found = re.search(pattern, readme)
        assert found is not None, pattern
        return int(found[1].replace(",", ""))

    back_ends = [source / "asgl" / "kernels" / name for name in ("cpu", "triton")]
    rows = re.findall(r"^\|(.* `asgl/.*)\| (\d+) \|$", readme, re.MULTILINE)
    first = [source / name for row, _ in rows for name in re.findall(r"`([\w/]+\.py)`", row)]
    close = partial(pytest.approx, rel=0.1)
    assert said(r"some ([\d,]+) lines") == close(lines_of(source.rglob("*.py")))
    assert said(r"kernels are ([\d,]+)") == close(
        lines_of(file for folder in back_ends for file in folder.rglob("*.py"))
    )
    assert said(r"These ([\d,]+) show") == close(lines_of(first))
    assert sum(int(lines) for _, lines in rows) == close(lines_of(first))


def test_the_commands_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = {
        target
        for page in PRESENT
        for target in re.findall(
            r"(?:^|`)make ([a-z][\w-]*)", page.read_text("utf-8"), re.MULTILINE
        )
    }
    assert {"demo", "test", "check", "docs"} <= named
    assert named - targets == set()
