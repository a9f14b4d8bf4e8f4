"""Which layers see only the last tokens (sliding windows, arXiv 2004.05150), as files say it."""

from __future__ import annotations

from collections.abc import Sequence

from asgl.models.settings import Settings

_FULL, _SLIDING = ("full_attention", "attention"), ("sliding_attention",)


def uniform(window: int | None, layers: int) -> tuple[int | None, ...]:
    """The windows of a model all of whose layers have the same."""
    return () if window is None else (window,) * layers


def alternating(window: int | None, layers: int, full_every: int) -> tuple[int | None, ...]:
    """The windows of a model of which the last of so many layers sees all, and then again."""
    if window is None or full_every < 1:
        return uniform(window, layers)
    return tuple(None if (i + 1) % full_every == 0 else window for i in range(layers))


def by_layer_types(
    settings: Settings, window: int | None, layers: int, default: Sequence[int | None]
) -> tuple[int | None, ...]:
    """The windows that `layer_types` of a config.json says, or the default. ModelError for another
    kind of layer."""
    kinds = settings.items("layer_types")
    if not kinds:
        return tuple(default)
    if len(kinds) != layers or any(kind not in _FULL + _SLIDING for kind in kinds):
        raise settings.error(
            "layer_types",
            f"only full_attention and sliding_attention can be computed, one for each of the "
            f"{layers} layers",
        )
    if window is None and any(kind in _SLIDING for kind in kinds):
        raise settings.error("layer_types", "sliding_window does not say how long a window is")
    return tuple(window if kind in _SLIDING else None for kind in kinds)


def of_gguf(settings: Settings, layers: int, full_every: int) -> tuple[int | None, ...]:
    """The windows of a GGUF file's metadata, whose pattern is a mark for each layer or says which
    of so many layers sees all; `full_every`, unless the file has one."""
    window = settings.integer("attention.sliding_window", 0) or None
    key = "attention.sliding_window_pattern"
    if isinstance(marks := settings.peek(key), list):
        marks = settings.items(key)
        if len(marks) < layers or any(mark not in (0, 1) for mark in marks):
            raise settings.error(key, f"a mark is needed for each of the {layers} layers")
        return () if window is None else tuple(window if marks[i] else None for i in range(layers))
    return alternating(window, layers, settings.integer(key, full_every))
