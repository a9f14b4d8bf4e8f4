"""From what a user names to an opened checkpoint."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from asgl.errors import ModelError
from asgl.models.hub import Reference, choose, fetch, parse_reference
from asgl.models.pull import REGISTERED, Progress, pull

if TYPE_CHECKING:
    from asgl.models.checkpoint import Checkpoint


def open_checkpoint(
    model: str | os.PathLike[str], *, progress: Progress | None = None
) -> Checkpoint:
    """Opens a model: a registered name, a .gguf file, a directory with one or in Hugging Face's
    layout, or one of its hub: "org/repo", "org/repo:Q4_K_M" or "org/repo/file.gguf".

    A registered name wins over a file or directory of that name ("./name" is the file). What has to
    be fetched is fetched into the cache, with news of it to `progress`. ModelError if there is no
    such model, it cannot be fetched, or is damaged.
    """
    if isinstance(model, str) and model in REGISTERED:
        return _file(pull(model, progress=progress), model)
    if not os.fspath(model):  # a Path of it would be the current directory
        raise _no_such_model("")
    try:
        path = Path(model).expanduser()
        kind = path.stat().st_mode if os.path.lexists(path) else 0
    except (OSError, RuntimeError, ValueError) as error:  # no such user; a loop; too long a name
        raise ModelError(f"the model {os.fspath(model)!r} cannot be read: {error}") from error
    if stat.S_ISDIR(kind):
        return _directory(path, None)
    if kind:
        if path.suffix.lower() != ".gguf" or not stat.S_ISREG(kind):
            raise ModelError(
                f"{path}: a model is a .gguf file or a directory with config.json and *.safetensors"
            )
        return _file(path, None)
    reference = parse_reference(model) if isinstance(model, str) else None
    if reference is not None and not (reference.file and path.parent.is_dir()):
        fetched = fetch(reference, progress=progress)
        return (_directory if fetched.is_dir() else _file)(fetched, str(reference))
    if not isinstance(model, str) or _is_path(model):
        raise _no_such_path(model, path)
    raise _no_such_model(model)


def _file(path: Path, name: str | None) -> Checkpoint:
    # imported only here: who names models, as `asgl models` does, should not wait for torch
    from asgl.models.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path, name)


def _directory(path: Path, name: str | None) -> Checkpoint:
    from asgl.models.safetensors_checkpoint import SafetensorsCheckpoint  # only here: as above

    names = [file.name for file in path.iterdir() if file.is_file()]
    if not any(name.endswith(".safetensors") for name in names) and any(
        name.lower().endswith(".gguf") for name in names
    ):
        choice = choose(names, Reference(path.name), f"the directory {path}")
        return _file(path / (choice.model or ""), name)
    return SafetensorsCheckpoint(path, name)


def _is_path(model: str) -> bool:
    """Whether it can be nothing but a file or directory."""
    begins = (".", "~", os.sep, *filter(None, [os.altsep]))
    return model.startswith(begins) or Path(model).suffix.lower() in (".gguf", ".safetensors")


def _no_such_path(model: str | os.PathLike[str], path: Path) -> ModelError:
    """Says what is missing of the path, and what is there instead."""
    if os.path.isdir(path.parent):
        files = sorted(file.name for file in path.parent.glob("*.gguf"))
        near = difflib.get_close_matches(path.name, files, n=1) or files[:3]
        found = f"its directory has {', '.join(near) or 'no .gguf file'}"
    else:
        found = f"there is no directory {str(path.parent)!r} either"
    if not path.is_absolute():
        found += f", and the current directory is {os.getcwd()!r}"
    hint = (
        f". {path.name!r} is a registered name: give it as a str" if path.name in REGISTERED else ""
    )
    return ModelError(
        f"there is no model {os.fspath(model)!r}: no file or directory of that name; {found}{hint}"
    )


def _no_such_model(model: str) -> ModelError:
    names = ", ".join(sorted(REGISTERED))
    near = difflib.get_close_matches(model, REGISTERED, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if "://" in model:
        hint = " A repo id is written without the address of the hub."
    return ModelError(
        f"there is no model {model!r}: not a registered name ({names}), not a .gguf file, not a "
        f"directory, not a model of the Hugging Face hub (org/repo, org/repo:Q4_K_M, "
        f"org/repo/file.gguf).{hint}"
    )
