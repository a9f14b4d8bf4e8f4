from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asgl.errors import ModelError
from asgl.models.gguf_checkpoint import GgufCheckpoint
from asgl.models.pull import REGISTERED, RegisteredModel
from asgl.models.registry import open_checkpoint
from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint
from tiny import tiny_directory, tiny_gguf


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    file, directory = tiny_gguf(tmp_path / "a.gguf"), tiny_directory(tmp_path / "b")
    assert isinstance(open_checkpoint(file), GgufCheckpoint)
    assert isinstance(open_checkpoint(str(file)), GgufCheckpoint)
    assert isinstance(open_checkpoint(directory), SafetensorsCheckpoint)
    assert open_checkpoint(str(directory)).name == "b"


def test_a_path_relative_to_here_or_to_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_directory(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_checkpoint("org/name").name == "name", (
        "a directory that is there is not looked for on the hub"
    )
    assert open_checkpoint("~/org/name").name == "name"


def test_a_registered_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_gguf(tmp_path / "cached.gguf")
    model = RegisteredModel("tiny-model", "", "", "", 0, "m.gguf", file.stat().st_size, "")
    monkeypatch.setitem(REGISTERED, "tiny-model", model)
    monkeypatch.setenv("ASGL_HOME", str(tmp_path / "home"))
    model.path.parent.mkdir(parents=True)
    file.rename(model.path)
    monkeypatch.chdir(tmp_path)
    tiny_directory(tmp_path / "tiny-model", num_hidden_layers=1)
    assert open_checkpoint("tiny-model").config.layers == 2
    assert open_checkpoint("tiny-model").name == "tiny-model"
    assert open_checkpoint("./tiny-model").config.layers == 1
    assert open_checkpoint(Path("tiny-model")).config.layers == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2-135", r"no model 'smollm2-135': .*smollm2-135m.*Did you mean 'smollm2-135m'\?"),
        ("gpt-5", r"no model 'gpt-5': not a registered name \(smollm2-135m\)"),
        ("", "no model ''"),
        ("no/such/directory", "no model 'no/such/directory'"),
        ("folder/model.gguf", r"no model 'folder/model\.gguf'"),
        ("../x/y", "no model"),
        ("./nosuch.gguf", r"no model '\./nosuch\.gguf': no file .*current directory is '.*here'"),
        ("smol.gguf", r"its directory has small\.gguf, and the current"),
        (Path("small.ggu"), r"its directory has small\.gguf"),
        ("nowhere/small.gguf", "there is no directory 'nowhere' either"),
        ("~nobody-of-that-name/m.gguf", "cannot be read: "),
        ("gone.gguf", r"'gone\.gguf' cannot be read: .*No such file"),
        (Path("smollm2-135m"), "'smollm2-135m' is a registered name: give it as a str"),
        ("https://huggingface.co/org/name", "without the address of the hub"),
        ("x" * 300 + ".gguf", "no model 'xxx"),
        ("a\0b.gguf", "no model"),
    ],
)
def test_there_is_no_such_model(
    model: str | Path, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "small.gguf").touch()
    (tmp_path / "here" / "gone.gguf").symlink_to(tmp_path / "moved.gguf")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match=message):
        open_checkpoint(model)


def test_the_suffix_in_capitals(tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(tiny_gguf(tmp_path / "A.GGUF")), GgufCheckpoint)


def test_files_and_directories_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"weights\.bin: a model is a \.gguf file or a directory"):
        open_checkpoint(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        open_checkpoint(tmp_path)
    (tmp_path / "files").mkdir()
    tiny_gguf(tmp_path / "files" / "inside.gguf")
    (tmp_path / "files" / "config.json").write_text("{}")
    assert isinstance(open_checkpoint(tmp_path / "files"), GgufCheckpoint)
    tiny_gguf(tmp_path / "files" / "inside-Q4_K_M.gguf", num_hidden_layers=1)
    assert open_checkpoint(tmp_path / "files").config.layers == 1
    (tmp_path / "files" / "inside-Q4_K_M.gguf").rename(tmp_path / "files" / "other.gguf")
    with pytest.raises(
        ModelError, match=r"files has no GGUF file of Q4_K_M; it has inside\.gguf, "
    ):
        open_checkpoint(tmp_path / "files")


def test_naming_models_loads_nothing_heavy() -> None:
    code = (
        "import sys, asgl.models.registry; "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'huggingface_hub', 'numpy', "
        "'rich') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.model
def test_the_default_model() -> None:
    checkpoint = open_checkpoint("smollm2-135m")
    assert checkpoint.name == "smollm2-135m"
    found = checkpoint.config
    assert (found.architecture, found.layers, found.hidden_size, found.heads, found.kv_heads) == (
        "llama",
        30,
        576,
        9,
        3,
    )
    assert (found.context_length, found.rope.theta, found.tied_head, found.vocabulary) == (
        8192,
        100_000.0,
        True,
        49152,
    )
    assert found.kv_bytes_per_token == 23_040
