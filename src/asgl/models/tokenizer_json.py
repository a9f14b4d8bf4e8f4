"""Tokenizers from Hugging Face's `tokenizer.json`, changed so that text is data.

What the file does for whole prompts is taken out, for it belongs to the caller: control tokens are
not looked for in text, nothing is put before or after it, and no space before its first word
(`Tokenizer.encode_run` puts it there).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from asgl.errors import ModelError
from asgl.models.chat_template import ChatTemplate
from asgl.models.tokenizer import (
    Added,
    Encode,
    Spacing,
    Tokenizer,
    byte_fallback_piece,
    byte_level_piece,
    is_marker,
    search_for,
)

Json = dict[str, Any]
_SPACES = ("\u2581", " ")
_DECODING = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"})
"""Steps of decoders whose work the table of bytes does. What they do at the beginning of a text is
left out: a space there is the `space_prefix`."""


def tokenizer_json(
    path: Path,
    *,
    vocabulary: int,
    bos: str | None = None,
    adds_bos: bool | None = None,
    end_texts: Iterable[str] = (),
    end_tokens: Iterable[int] = (),
    named: Iterable[str] = (),
    added: Mapping[int, Json] | None = None,
    template: ChatTemplate | None = None,
) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    `vocabulary` is the number of rows of the model's embedding. What `tokenizer_config.json` and
    its like say goes into `bos`, `adds_bos`, `end_texts` (texts of tokens), `end_tokens`, `named`
    (texts that are control tokens) and `added` (added tokens, in the form of the file itself);
    unset, `adds_bos` is what the file's post-processor does. `template` is the model's chat
    template, which uses added tokens as markers. ModelError if the file is damaged, or of a kind
    that is not known.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content["model"].get("type", "BPE")
        if kind not in ("BPE", "Unigram"):
            raise ModelError(
                f"{path}: tokenizers of the kind {kind!r} are not known, only BPE and Unigram"
            )
        tokens = _added_tokens(content, added or {})
        end_texts = set(end_texts)
        control = _control(content, tokens, {*named, *end_texts, bos or ""}, template, vocabulary)
        ends = {id for id, text in control.items() if text in end_texts}.union(end_tokens)
        ends |= answer_ends(template, {text: id for id, text in control.items()})
        return _build(path, content, tokens, control, vocabulary, bos, adds_bos, ends)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ModelError(
            f"{path}: not a tokenizer.json that can be read: {type(error).__name__}: {error}"
        ) from error


def _added_tokens(content: Json, further: Mapping[int, Json]) -> dict[int, Json]:
    """The added tokens by id; what `further` says of a token wins over the file, but that it is no
    special one."""
    tokens: dict[int, Json] = {token["id"]: token for token in content.get("added_tokens") or ()}
    ids = {token["content"]: id for id, token in tokens.items()}
    known = _table(content["model"])
    for id, token in further.items():
        id = ids.get(token["content"], known.get(token["content"], id))
        old = tokens.get(id, {"content": token["content"], "special": False})
        if old["content"] == token["content"]:
            tokens[id] = {**old, **token, "id": id, "special": old["special"] or token["special"]}
    for id, token in tokens.items():
        if not isinstance(id, int) or id < 0 or not isinstance(token["content"], str):
            raise ValueError(f"added token {id!r:.40} is {token['content']!r:.40}")
    return tokens


def _control(
    content: Json,
    added: dict[int, Json],
    named: set[str],
    template: ChatTemplate | None,
    vocabulary: int,
) -> dict[int, str]:
    """The control tokens by id, as `asgl.models.tokenizer` says. Those that are named and in the
    vocabulary without having been added become added ones."""
    table = _table(content["model"])
    texts = {token["content"] for token in added.values()}
    for text in named - texts:
        if text in table and is_marker(text):
            added[table[text]] = {"id": table[text], "content": text, "special": True}
    named = named | markers_written(template, texts)
    control: dict[int, str] = {}
    for id, token in added.items():
        text = token["content"]
        if id < vocabulary and len(text) > 1 and (token["special"] or text in named):
            control[id] = text
    return control


def markers_written(template: ChatTemplate | None, texts: Iterable[str]) -> set[str]:
    """Those of the added tokens that the chat template uses as markers. None of a template that
    cannot be used, which says so when it is."""
    if template is None:
        return set()
    try:
        return template.writes(filter(is_marker, texts))
    except ModelError:
        return set()


def answer_ends(template: ChatTemplate | None, special_tokens: Mapping[str, int]) -> set[int]:
    """The control tokens that come first after an answer in what the chat template writes."""
    try:
        tails = [] if template is None else template.after_answers()
    except ModelError:
        return set()
    search = search_for(special_tokens)
    found = [search.search(tail) for tail in tails] if search is not None else []
    return {special_tokens[marker[0]] for marker in found if marker is not None}


def _build(
    path: Path,
    content: Json,
    added: Mapping[int, Json],
    control: Mapping[int, str],
    vocabulary: int,
    bos: str | None,
    adds_bos: bool | None,
    end_tokens: Iterable[int],
) -> Tokenizer:
    words = {id: token for id, token in added.items() if id not in control and id < vocabulary}
    pieces = _pieces(path, content, added, words, vocabulary)
    by_text = {text: id for id, text in control.items()}
    first = _first_of_prompt(content.get("post_processor"))
    if bos is None and first in by_text:
        bos = first
    if adds_bos is None:
        adds_bos = bos is not None and first == bos
    _as_data(content, {token["content"] for token in added.values()}, control, words, len(pieces))
    flags = _flags(path, content, {id: added[id] for id in control})
    with_spaces = json.dumps(content) if words else ""
    spacing = _without_spacing(content)
    # The space before a text can be given as text, unless it matters where added tokens begin
    ids = {token["content"]: id for id, token in words.items()}
    spaced = backend_encode(path, with_spaces, ids) if words and spacing is not None else None
    return Tokenizer(
        backend_encode(path, json.dumps(content), ids),
        pieces,
        control,
        bos=by_text.get(bos or ""),
        adds_bos=adds_bos,
        end_tokens=end_tokens,
        space_prefix="" if spacing is None else " ",
        spacing=spacing or Spacing(),
        encode_spaced=spaced,
        added=flags,
    )


def backend_encode(path: Path, definition: str, words: Mapping[str, int] | None = None) -> Encode:
    """`encode` of the `tokenizers` library for that definition. ModelError if it is refused, and
    when a text is encoded that it cannot take.

    The library numbers added tokens by itself: `words` are the ids that they have in truth.
    """
    backend = _backend(path, definition)
    backend.encode_special_tokens = True
    true_ids = {backend.token_to_id(word): id for word, id in (words or {}).items()}

    def encode(text: str) -> list[int]:
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _refused(path, error) from error
        return [true_ids.get(id, id) for id in ids] if true_ids else ids

    return encode


def _backend(path: Path, definition: str) -> Backend:
    try:
        return Backend.from_str(definition)
    except BaseException as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: BaseException) -> ModelError:
    """The library raises bare Exception, and where it is at a loss, what pyo3 makes of a panic:
    that is no Exception, and can only be told by its name. All others are raised again."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return ModelError(f"{path}: the tokenizer is refused: {error}")


def _table(model: Json) -> Mapping[str, int]:
    """The ids of the model's own tokens by their texts."""
    if model.get("type", "BPE") == "BPE":
        return model["vocab"]
    return {piece: id for id, (piece, _) in enumerate(model["vocab"])}


def _pieces(
    path: Path, content: Json, added: Mapping[int, Json], words: Mapping[int, Json], vocabulary: int
) -> list[bytes]:
    """The bytes of every token."""
    table = _table(content["model"])
    byte_level = _has_step(content, "ByteLevel")
    steps = [content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    if not byte_level and "\u2581" not in json.dumps(steps, ensure_ascii=False):
        raise ModelError(
            f"{path}: neither a byte-level tokenizer nor one of SentencePiece's kind; no other is "
            "known"
        )
    ids = [*table.values(), *(id for id, token in added.items() if not token["special"])]
    if min(ids) < 0 or max(ids) >= vocabulary:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise ModelError(
            f"{path}: token {wrong} is outside the model's vocabulary of {vocabulary}; the "
            "tokenizer is that of another model"
        )
    replaced = _replacements(path, content.get("decoder"))
    pieces = [b""] * vocabulary
    for text, id in table.items():
        pieces[id] = (
            byte_level_piece(text)
            if byte_level
            else byte_fallback_piece(text) or _decoded(text, replaced)
        )
    for id, token in words.items():
        text = token["content"]
        pieces[id] = text.encode() if byte_level else _decoded(text, replaced)
    return pieces


def _replacements(path: Path, decoder: Json | None) -> list[tuple[str, str]]:
    """What the decoder replaces in every token, in this order."""
    replaced: list[tuple[str, str]] = []
    for step in _steps(decoder):
        if step["type"] not in _DECODING:
            raise ModelError(f"{path}: decoders with a step {step['type']!r} are not known")
        if step["type"] == "Metaspace":
            replaced.append((step.get("replacement", "\u2581"), " "))
        elif step["type"] == "Replace":
            if "String" not in step["pattern"]:
                raise ModelError(f"{path}: decoders that replace {step['pattern']} are not known")
            replaced.append((step["pattern"]["String"], step["content"]))
    return replaced or [("\u2581", " ")]


def _decoded(text: str, replaced: Sequence[tuple[str, str]]) -> bytes:
    for old, new in replaced:
        text = text.replace(old, new)
    return text.encode()


def _as_data(
    content: Json,
    texts: set[str],
    control: Mapping[int, str],
    words: Mapping[int, Json],
    vocabulary: int,
) -> None:
    """Takes the control tokens out of the definition, and what it does for whole prompts but for
    spaces. `texts` are those of all added tokens."""
    model: Json = content["model"]
    hidden = (texts - {token["content"] for token in words.values()}) | set(control.values())
    # Ids without a text of their own get a name that no text has: spaces are another character by
    # the time that the model sees them
    if model.get("type", "BPE") == "BPE":
        known = {text: id for text, id in model["vocab"].items() if text not in hidden}
        holes = set(range(vocabulary)).difference(known.values())
        model["vocab"] = known | {f" {id}": id for id in holes}
        model["merges"] = without_control(model["merges"], hidden)
        model["dropout"] = None
        if model.get("unk_token") in hidden:
            model["unk_token"] = None
    else:
        lowest = min(score for _, score in model["vocab"])
        model["vocab"] = [
            [f" {id}" if piece in hidden else piece, score]
            for id, (piece, score) in enumerate(model["vocab"])
        ] + [[f" {id}", lowest] for id in range(len(model["vocab"]), vocabulary)]
    content["added_tokens"] = [{**_ADDED, **token, "special": False} for token in words.values()]
    content["truncation"] = content["padding"] = content["post_processor"] = None


_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _flags(path: Path, content: Json, control: Mapping[int, Json]) -> dict[int, Added]:
    """How control tokens are found in a text (`AddedVocabulary` of the `tokenizers` library)."""
    definition = json.loads(Backend(BPE()).to_str()) | {"normalizer": content.get("normalizer")}
    normalizer = _backend(path, json.dumps(definition)).normalizer
    normalize = str if normalizer is None else normalizer.normalize_str
    return {
        id: added_flags(token, normalize(token["content"]) != token["content"])
        for id, token in control.items()
    }


def added_flags(token: Json, changes: bool = False) -> Added:
    """How an added token is found, from its entry in a file; `changes` says that normalizing its
    text makes another text of it."""
    late, doubtful = bool(token.get("normalized")), ""
    if token.get("single_word"):
        doubtful = "finds only as a word of its own"
    elif late and changes:
        doubtful = "finds only where normalizing a text makes it"
    return Added(bool(token.get("lstrip")), bool(token.get("rstrip")), late, doubtful)


def without_control(merges: list[Any], control: set[str]) -> list[Any]:
    """The merges, each "left right" or a pair, that neither make nor use a control token."""
    if not control:
        return merges
    kept: list[Any] = []
    for merge in merges:
        left, right = merge.partition(" ")[::2] if isinstance(merge, str) else merge
        if left not in control and right not in control and left + right not in control:
            kept.append(merge)
    return kept


def _steps(part: Json | None) -> list[Json]:
    """A normalizer, pre-tokenizer, decoder or post-processor as the list of its steps."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = (
        part.get("normalizers")
        or part.get("pretokenizers")
        or part.get("decoders")
        or part.get("processors")
        or []
    )
    return [step for one in inner for step in _steps(one)]


def _has_step(content: Json, kind: str) -> bool:
    return any(
        step["type"] == kind
        for part in ("pre_tokenizer", "decoder")
        for step in _steps(content.get(part))
    )


def _without_spacing(content: Json) -> Spacing | None:
    """Takes out what puts a space before texts, and says where it would put one; None if nothing
    does."""
    spacing: Spacing | None = None
    steps = _steps(content.get("normalizer"))
    kept = [
        step
        for step in steps
        if step["type"] != "Prepend" or step["prepend"] not in ("\u2581", " ")
    ]
    if len(kept) < len(steps):
        spacing = Spacing(after_control=True, doubled=True)
        content["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    for step in _steps(content.get("pre_tokenizer")):
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme", "always")
            if scheme != "never" and step.get("add_prefix_space", True):
                spacing = spacing or Spacing(after_control=scheme == "always")
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        elif step["type"] == "ByteLevel":
            if step.get("add_prefix_space", True):
                spacing = spacing or Spacing(after_control=True)
            step["add_prefix_space"] = False
    return spacing


def _first_of_prompt(post_processor: Json | None) -> str | None:
    """The text of the control token that the post-processor puts before a single sequence, if
    any."""
    for step in _steps(post_processor):
        if (
            step["type"] == "TemplateProcessing"
            and step["single"]
            and "SpecialToken" in step["single"][0]
        ):
            return step["single"][0]["SpecialToken"]["id"]
    return None
