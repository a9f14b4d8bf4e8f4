"""Models of the Hugging Face hub: which files a name means, and fetching them into the hub's own
cache, whole and checked.

    org/repo                the safetensors of the repository; without any, its GGUF file
    org/repo:Q4_K_M         its GGUF file of that quantization
    org/repo/file.gguf      that file of it

The cache is the one that all tools of the hub share (HF_HOME moves it). A file that was fetched in
part is fetched on from there. Where the hub cannot be reached, what the cache has is taken.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from asgl.errors import ModelError
from asgl.models.gguf_names import part_paths
from asgl.models.pull import Progress

DEFAULT_QUANTIZATION = "Q4_K_M"
"""Taken where a repository has several GGUF files and none is named."""
_REFERENCE = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)"
    r"(?::(?P<quantization>[\w.-]+)|/(?P<file>[^:]+\.gguf))?",
    re.I,
)
_CONFIGS = re.compile(r"[^/]+\.json|tokenizer\.model|chat_template\.jinja")
_NO_MODELS = re.compile(r"mmproj|imatrix", re.I)
_CHUNK = 1 << 20
_TRIES = 3
"""So many connections may break one after the other before they bring a byte."""
_NAMES_SHOWN = 12


class Reference(NamedTuple):
    """A model of the hub: a repository, and the quantization or the file of it that is meant."""

    repository: str
    quantization: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.repository}/{self.file}"
        return self.repository + (f":{self.quantization}" if self.quantization else "")


class Choice(NamedTuple):
    """Files of a repository that make a model. model: the GGUF file to open, None to open the
    directory."""

    files: list[str]
    model: str | None


class _RemoteFile(NamedTuple):
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    files: dict[str, _RemoteFile]


def parse_reference(name: str) -> Reference | None:
    """What of the hub the name means; None if it is not of that form."""
    found = _REFERENCE.fullmatch(name)
    if found is None or found["repository"].lower().endswith((".gguf", ".safetensors")):
        return None
    if ".." in (found["file"] or "").split("/"):
        return None
    return Reference(found["repository"], found["quantization"], found["file"])


def choose(names: Collection[str], reference: Reference, where: str) -> Choice:
    """Which of the files are the model. `where` names the place for errors: ModelError if none is
    meant, or more than one."""
    models = gguf_models(names)
    if reference.file is not None:
        if reference.file not in names:
            raise ModelError(f"{where} has no file {reference.file!r}; {_listed(models)}")
        return _gguf(reference.file)
    if reference.quantization is not None:
        return _gguf(_of_quantization(models, reference.quantization, where))
    if weights := _safetensors(names):
        return Choice([*filter(_CONFIGS.fullmatch, sorted(names)), *weights], None)
    if len(models) == 1:
        return _gguf(models[0])
    if not models:
        raise ModelError(
            f"{where} has neither *.safetensors nor *.gguf files; other formats "
            "(pytorch_model.bin) are not read, convert them"
        )
    return _gguf(_of_quantization(models, DEFAULT_QUANTIZATION, where))


def gguf_models(names: Collection[str]) -> list[str]:
    """The GGUF files that are models; of one in several parts the first."""
    return sorted(
        name
        for name in names
        if name.lower().endswith(".gguf")
        and not _NO_MODELS.search(name)
        and Path(name) == part_paths(Path(name))[0]
    )


def _gguf(model: str) -> Choice:
    parts = [path.as_posix() for path in part_paths(Path(model))]
    return Choice(parts, parts[0])


def _of_quantization(models: Sequence[str], quantization: str, where: str) -> str:
    """The model whose name has the quantization as a word of its own."""
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(quantization)}(?![A-Za-z0-9_])", re.I)
    found = [name for name in models if word.search(name)]
    if len(found) > 1:  # UD-Q4_K_XL is not what Q4_K_XL alone would be
        found = [name for name in found if not re.search(rf"\bUD-{quantization}", name, re.I)]
    if len(found) != 1:
        what = "no GGUF file" if not found else f"{len(found)} GGUF files"
        raise ModelError(
            f"{where} has {what} of {quantization}; {_listed(found or models)}. Name one, as in "
            "'org/repo/file.gguf' or 'org/repo:Q8_0'"
        )
    return found[0]


def _safetensors(names: Collection[str]) -> list[str]:
    """The weights, if the directory is a model: as transformers takes them, not those that a
    repository has beside in another form (consolidated.safetensors)."""
    there = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if "config.json" not in names or not there:
        return []
    if "model.safetensors" in there:
        return ["model.safetensors"]
    if "model.safetensors.index.json" in names:
        there = [name for name in there if not name.startswith("consolidated")]
    return there


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "it has no GGUF files"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"it has {', '.join(names[:_NAMES_SHOWN])}{more}"


def fetch(reference: Reference, *, progress: Progress | None = None, check: bool = False) -> Path:
    """The path of the model, a directory or a GGUF file, fetched first as far as the cache lacks
    it.

    What is fetched is compared with its hash. `check` compares what the cache has, too, and fetches
    again what differs. Several
    processes may fetch at once: one works, the others wait for it. ModelError if
    there is no such model, it may not be had, or the hub cannot be reached and the cache has none.
    """
    from huggingface_hub import constants  # only here: few need the hub, and it takes a second

    where = f"the repository {reference.repository!r}"
    folder = Path(constants.HF_HUB_CACHE) / f"models--{reference.repository.replace('/', '--')}"
    try:
        listing = _listing(reference)
    except ModelError:
        raise
    except Exception as error:  # of many kinds: of the hub, of HTTP, of files
        return _cached(reference, folder, error)
    choice = choose(listing.files, reference, where)
    if missing := [name for name in choice.files if name not in listing.files]:
        raise ModelError(f"{where} lacks {', '.join(missing)}, a part of the model")
    snapshot = folder / "snapshots" / listing.commit
    if check:
        _remove_damaged(snapshot, listing, choice.files, progress)
    lacking = [name for name in choice.files if not (snapshot / name).exists()]
    _check_room(reference, listing, lacking, folder)
    report = _Report(progress, str(reference), sum(listing.files[name].size for name in lacking))
    try:
        for name in lacking:
            _download(reference.repository, name, listing, folder, report)
    except ModelError:
        raise
    except Exception as error:  # as above
        raise _refusal(reference, error) from error
    reference_file = folder / "refs" / "main"  # what is found again without the hub
    reference_file.parent.mkdir(parents=True, exist_ok=True)
    reference_file.write_text(listing.commit)
    return snapshot if choice.model is None else snapshot / choice.model


def _listing(reference: Reference) -> _Listing:
    """What the hub says that the repository has."""
    import huggingface_hub  # only here: as above
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = huggingface_hub.HfApi().model_info(reference.repository, files_metadata=True)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status < 500 and status not in (408, 429):
            raise _refusal(reference, error) from error
        raise
    files: dict[str, _RemoteFile] = {}
    for file in info.siblings or []:
        lfs: Any = file.lfs
        files[file.rfilename] = _RemoteFile(file.size or 0, lfs.sha256 if lfs else None)
    return _Listing(str(info.sha), files)


def _cached(reference: Reference, folder: Path, error: Exception) -> Path:
    """The model as the cache has it, where the hub cannot be asked. ModelError if it has not."""
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        raise _refusal(reference, error) from error
    snapshot = folder / "snapshots" / commit
    names = [
        path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()
    ]
    try:
        choice = choose(names, reference, f"{snapshot}, a copy of {reference.repository!r},")
    except ModelError as not_here:
        raise ModelError(
            f"the Hugging Face hub cannot be reached ({error}), and {not_here}"
        ) from error
    return snapshot if choice.model is None else snapshot / choice.model


class _Report:
    """Adds up the bytes of several files."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress, self._what, self._total = progress, f"fetching {what}", total
        self._done = 0

    def __call__(self, count: int) -> None:
        """So many bytes more are there."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total, self._what)


def _part(folder: Path, file: _RemoteFile) -> Path:
    """Where a file lies that was fetched in part."""
    return folder / "blobs" / f"{file.sha256}.asgl-part"


def _download(repository: str, name: str, listing: _Listing, folder: Path, report: _Report) -> None:
    """Brings one file into the cache. Of a large one, the part that an earlier try has left is
    used; the hub's own library begins anew."""
    import huggingface_hub  # only here: as above
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    file = listing.files[name]
    if file.sha256 is not None:
        blob = folder / "blobs" / file.sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{blob}.asgl-lock"):
            if not blob.exists():
                url = huggingface_hub.hf_hub_url(repository, name, revision=listing.commit)
                _fetch_on(url, file, _part(folder, file), report)
                os.replace(_part(folder, file), blob)
    else:
        report(file.size)
    # finds the large file there, and gives it its name
    huggingface_hub.hf_hub_download(repository, name, revision=listing.commit, tqdm_class=Quiet)


def _fetch_on(url: str, file: _RemoteFile, part: Path, report: _Report) -> None:
    """Fetches what `part` lacks of the file, and compares the whole with its hash."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    digest = hashlib.sha256()
    failures = 0
    why: Exception | None = None
    with open(part, "ab+") as output:
        output.seek(0)
        while chunk := output.read(_CHUNK):
            digest.update(chunk)
            report(len(chunk))
        while output.tell() < file.size:
            begin = output.tell()
            asked = {"Range": f"bytes={begin}-", "Accept-Encoding": "identity"}
            headers = {**build_hf_headers(), **asked}
            try:
                with get_session().stream(
                    "GET",
                    url,
                    headers=headers,
                    follow_redirects=True,
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                ) as response:
                    hf_raise_for_status(response)
                    if begin and response.status_code != 206:  # the whole file comes
                        report(-begin)
                        output.truncate(0)
                        digest = hashlib.sha256()
                    for chunk in response.iter_raw():  # as it comes: all counts if it breaks
                        digest.update(chunk)
                        output.write(chunk)
                        report(len(chunk))
            except OSError:  # of the disk, or of the hub: what it says will not change
                raise
            except Exception as error:  # the connection broke
                why = error
            failures = 0 if output.tell() > begin else failures + 1
            if failures == _TRIES:
                raise why or ConnectionError(f"{url}: {output.tell()} of {file.size} bytes came")
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise ModelError(
            f"{url}: what came is another file, with sha256 {digest.hexdigest()}, not "
            f"{file.sha256}; fetch it again"
        )


def _check_room(
    reference: Reference, listing: _Listing, lacking: Sequence[str], folder: Path
) -> None:
    """ModelError if the disk has less room than the files take."""
    needed = 0
    for name in lacking:
        file = listing.files[name]
        part = _part(folder, file)
        needed += file.size - (part.stat().st_size if part.exists() else 0)
    there = folder
    while not there.exists():
        there = there.parent
    if needed > (free := shutil.disk_usage(there).free):
        raise ModelError(_no_room(reference, f"{needed >> 20} MiB are needed and {free >> 20} MiB"))


def _no_room(reference: Reference, what: str) -> str:
    from huggingface_hub import constants  # only here: as above

    return (
        f"{str(reference)!r} cannot be fetched: {what} are free in "
        f"{constants.HF_HUB_CACHE}; make room, or set HF_HOME to a directory that "
        "has it"
    )


def _remove_damaged(
    snapshot: Path, listing: _Listing, names: Sequence[str], progress: Progress | None
) -> None:
    """Removes the files whose bytes are not those that the hub says."""
    for name in names:
        path, expected = snapshot / name, listing.files[name]
        if not path.exists():
            continue
        size = path.stat().st_size
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while expected.sha256 and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
                if progress is not None:
                    progress(file.tell(), size, f"checking {name}")
        if size != expected.size or expected.sha256 not in (None, digest.hexdigest()):
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)


def _refusal(reference: Reference, error: Exception) -> ModelError:
    """Why the hub did not give the model, and what to do."""
    from huggingface_hub import constants  # only here: as above
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name, repository = str(reference), reference.repository
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{name!r} is gated: accept its terms at {constants.ENDPOINT}/{repository}, then log "
            "in with `hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"{name!r} is no file, directory or registered name here, and the Hugging Face hub has "
            f"no repository {repository!r}, or none that may be read without a token; check the "
            "name, or log in with `hf auth login`"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(_no_room(reference, "the disk is full: too few bytes"))
    why = (
        "the Hugging Face hub refused"
        if isinstance(error, HfHubHTTPError)
        else ("the Hugging Face hub cannot be reached")
    )
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    return ModelError(
        f"{name!r} is no file, directory or registered name here, and cannot be fetched: {why}"
        f"{offline}: {error}. Check the network, or run `asgl pull {name}` where there is one and "
        f"copy its cache, {os.environ.get('HF_HOME') or '~/.cache/huggingface'}"
    )
