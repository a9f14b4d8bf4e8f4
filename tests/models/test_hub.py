from __future__ import annotations

import collections
import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, serving
from huggingface_hub import constants

from asgl.errors import ModelError
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.hub import Reference, choose, fetch, parse_reference
from asgl.models.registry import open_checkpoint
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint
from tiny import split_gguf, tiny_directory, tiny_gguf


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    at = tmp_path_factory.mktemp("hub")

    def contents(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    tiny_directory(at / "whole", shards=2)
    (at / "whole" / "original").mkdir()
    (at / "whole" / "original" / "model.safetensors").write_bytes(b"x" * 5000)
    (at / "whole" / "consolidated.safetensors").write_bytes(b"x" * 5000)
    (at / "whole" / "README.md").write_text("# tiny")
    (at / "files").mkdir()
    for kind in ("Q8_0", "Q4_0"):
        tiny_gguf(at / "files" / f"tiny-{kind}.gguf", quantize=kind)
    (at / "files" / "mmproj-tiny.gguf").write_bytes(b"GGUF" + b"x" * 5000)
    (at / "split" / "Q8_0").mkdir(parents=True)
    split_gguf(at / "split" / "Q8_0" / "tiny-Q8_0.gguf", at / "files" / "tiny-Q8_0.gguf", 2)
    return {f"org/{name}": contents(at / name) for name in ("whole", "files", "split")}


@pytest.fixture
def hub(
    repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with serving(FakeHub(repositories)) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def cached(tmp_path: Path) -> set[str]:
    return {
        path.relative_to(tmp_path / "cache").as_posix()
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and "blobs" in path.parts
    }


def test_a_directory_without_what_is_beside(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("org/whole")
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    assert checkpoint.name == "org/whole"
    assert checkpoint.tokenizer.encode("a") == [97]
    asked = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET"}
    assert not {"consolidated.safetensors", "README.md", "model.safetensors"} & asked
    checkpoint.close()
    before = len(hub.asked)
    open_checkpoint("org/whole").close()
    assert [path for _, path, _ in hub.asked[before:]] == ["/api/models/org/whole"], (
        "nothing is fetched again"
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("org/files:Q8_0", "tiny-Q8_0.gguf"),
        ("org/files:q4_0", "tiny-Q4_0.gguf"),
        ("org/files/tiny-Q4_0.gguf", "tiny-Q4_0.gguf"),
        ("org/split", "tiny-Q8_0-00001-of-00002.gguf"),
        ("org/split:Q8_0", "tiny-Q8_0-00001-of-00002.gguf"),
        ("org/split/Q8_0/tiny-Q8_0-00002-of-00002.gguf", "tiny-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_files_of_a_repository(hub: FakeHub, name: str, file: str) -> None:
    reference = parse_reference(name)
    assert reference is not None
    assert fetch(reference).name == file
    checkpoint = open_checkpoint(name)
    assert isinstance(checkpoint, GgufCheckpoint)
    assert checkpoint.name == name
    checkpoint.close()
    assert not hub.sent("mmproj-tiny.gguf")


def test_a_fetch_goes_on_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.break_after[:] = [20_000, 10_000]
    reports: list[tuple[int, int | None, str]] = []
    path = fetch(Reference("org/files", "Q8_0"), progress=lambda *report: reports.append(report))
    content = hub.repositories["org/files"]["tiny-Q8_0.gguf"]
    assert path.read_bytes() == content
    assert hub.sent("tiny-Q8_0.gguf") == ["bytes=0-", "bytes=20000-", "bytes=30000-"]
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert reports[-1] == (len(content), len(content), "fetching org/files:Q8_0")


def test_a_later_fetch_goes_on_where_an_earlier_one_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.break_after[:] = [20_000, 0, 0, 0]
    with pytest.raises(ModelError, match=r"'org/files:Q8_0' .* cannot be reached"):
        fetch(Reference("org/files", "Q8_0"))
    assert any(name.endswith(".asgl-part") for name in cached(tmp_path))
    before = len(hub.asked)
    fetch(Reference("org/files", "Q8_0"))
    assert ("GET", f"/org/files/resolve/{COMMIT}/tiny-Q8_0.gguf", "bytes=20000-") in (
        hub.asked[before:]
    )
    assert not any(name.endswith(".asgl-part") for name in cached(tmp_path))


def test_a_hub_that_cannot_send_a_part(hub: FakeHub) -> None:
    hub.break_after[:] = [20_000]
    hub.ignores_ranges = True
    path = fetch(Reference("org/files", "Q8_0"))
    assert path.read_bytes() == hub.repositories["org/files"]["tiny-Q8_0.gguf"]


def test_a_hub_that_sends_nothing(hub: FakeHub) -> None:
    hub.empty.add("tiny-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"cannot be reached: .*: 0 of \d+ bytes came"):
        fetch(Reference("org/files", "Q8_0"))
    assert len(hub.sent("tiny-Q8_0.gguf")) == 3


def test_other_bytes_than_the_hub_says(hub: FakeHub, tmp_path: Path) -> None:
    hub.forged.add("tiny-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"tiny-Q8_0\.gguf: what came is another file, with sha"):
        fetch(Reference("org/files", "Q8_0"))
    assert not any("part" in name for name in cached(tmp_path))
    hub.forged.clear()
    path = fetch(Reference("org/files", "Q8_0"))
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + b"!")
    assert fetch(Reference("org/files", "Q8_0")).read_bytes() != content
    checked: list[str] = []
    again = fetch(
        Reference("org/files", "Q8_0"),
        check=True,
        progress=lambda *report: checked.append(report[2]),
    )
    assert again.read_bytes() == content
    assert checked[0] == "checking tiny-Q8_0.gguf"


def test_without_the_hub_the_cache_is_taken(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("org/whole", "org/files:Q8_0"):
        open_checkpoint(name).close()
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    for name in ("org/whole", "org/files:Q8_0", "org/files"):
        open_checkpoint(name).close()
    with pytest.raises(ModelError, match=r"cannot be reached .*no GGUF file of Q4_0; it has tiny"):
        open_checkpoint("org/files:Q4_0")
    with pytest.raises(ModelError, match=r"'org/split' .* cannot be reached.*asgl pull org/split"):
        open_checkpoint("org/split")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.fails = True
    open_checkpoint("org/files:Q8_0").close()
    hub.fails = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    open_checkpoint("org/files:Q8_0").close()
    with pytest.raises(ModelError, match=r"'org/split' .*HF_HUB_OFFLINE is set"):
        open_checkpoint("org/split")
    assert len(hub.asked) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/nope", r"'org/nope' is no file.*has no repository 'org/nope'.*hf auth login"),
        ("org/files", r"repository 'org/files' has no GGUF file of Q4_K_M; it has tiny-Q4_0\.gguf"),
        ("org/files:Q6_K", r"no GGUF file of Q6_K; it has tiny-Q4_0\.gguf, tiny-Q8_0\.gguf"),
        ("org/files/other.gguf", r"has no file 'other\.gguf'; it has tiny-Q4_0\.gguf"),
    ],
)
def test_what_the_hub_has_not(hub: FakeHub, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_checkpoint(name)


def test_a_gated_repository(hub: FakeHub) -> None:
    hub.gated.add("org/whole")
    with pytest.raises(
        ModelError, match=rf"'org/whole' is gated: accept its terms at {hub.url}/org/whole"
    ):
        open_checkpoint("org/whole")


def test_no_room(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")(1 << 40, 1 << 40, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"0 MiB are needed and 0 MiB are free in .*HF_HOME"):
        fetch(Reference("org/files", "Q8_0"))
    assert not hub.sent("tiny-Q8_0.gguf")
    monkeypatch.undo()


def test_the_disk_is_full(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("asgl.models.hub._fetch_on", full)
    with pytest.raises(ModelError, match=r"the disk is full.*make room, or set HF_HOME"):
        fetch(Reference("org/files", "Q8_0"))


def test_names() -> None:
    assert parse_reference("org/repo") == Reference("org/repo")
    assert parse_reference("Qwen/Qwen3-0.6B") == Reference("Qwen/Qwen3-0.6B")
    assert parse_reference("org/repo:Q4_K_M") == Reference("org/repo", "Q4_K_M")
    assert parse_reference("org/repo/a/b.gguf") == Reference("org/repo", None, "a/b.gguf")
    for name in ("org/repo.gguf:x:y", "org", "org/repo:", "org/../x.gguf", "/org/repo", "a/b/c"):
        assert parse_reference(name) is None, name
    for name in ("org/repo", "org/repo:Q4_K_M", "org/repo/a/b.gguf"):
        assert str(parse_reference(name)) == name


def chosen(names: list[str], quantization: str | None = None) -> list[str]:
    return choose(names, Reference("org/repo", quantization), "it").files


def test_which_files_are_the_model() -> None:
    several = ["m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf", "m.Q8_0.gguf", "mmproj.gguf"]
    assert chosen(several) == ["m-Q4_K_M.gguf"]
    assert chosen(several, "UD-Q4_K_XL") == ["m-UD-Q4_K_XL.gguf"]
    assert chosen(several, "Q4_K_XL") == ["m-Q4_K_XL.gguf"]
    assert chosen(several, "q8_0") == ["m.Q8_0.gguf"]
    with pytest.raises(ModelError, match=r"no GGUF file of Q4_K; it has m-Q4_K_M\.gguf, "):
        chosen(several, "Q4_K")
    with pytest.raises(ModelError, match=r"2 GGUF files of Q4_K_M; it has a-Q4_K_M"):
        chosen(["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"])
    many = [f"m-{i}.gguf" for i in range(20)]
    with pytest.raises(ModelError, match="and 8 more"):
        chosen(many)
    with pytest.raises(ModelError, match=r"neither \*\.safetensors nor \*\.gguf"):
        chosen(["pytorch_model.bin", "config.json"])
    assert chosen(["config.json", "model.safetensors", "m.gguf", "a/b.json"]) == [
        "config.json",
        "model.safetensors",
    ]
