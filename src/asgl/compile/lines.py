"""Where in the user's program something happened: for errors and listings."""

from __future__ import annotations

import functools
import inspect
import os
import sysconfig
from collections.abc import Callable
from types import FrameType
from typing import cast

import anyio

_OURS = (
    os.path.join(os.path.dirname(os.path.dirname(__file__)), ""),
    os.path.join(os.path.dirname(anyio.__file__), ""),
    "<frozen",
)
_STANDARD_LIBRARY = os.path.join(sysconfig.get_path("stdlib"), "")
_PACKAGES = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))


def line_of(frame: FrameType | None) -> str:
    """The innermost line of the user's that led to the frame, as "file:line, in function"."""
    while frame is not None and not _is_users(frame):
        frame = frame.f_back
    return "the program" if frame is None else _written(frame, frame.f_lineno)


def line_of_program(fn: Callable[..., object]) -> str:
    """Where the function begins."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[object]", fn).func
    code = inspect.unwrap(fn).__code__
    return f"{code.co_filename}:{code.co_firstlineno}, in {code.co_name}"


def line_of_error(error: BaseException) -> str | None:
    """The innermost line of the user's that the error came through, if it came through one."""
    where: str | None = None
    trace = error.__traceback__
    while trace is not None:
        if _is_users(trace.tb_frame):
            where = _written(trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    return where


def _is_users(frame: FrameType) -> bool:
    """Whether it is the program's, or that of a function of the user's: not asgl's, nor the
    standard library's."""
    file = frame.f_code.co_filename
    if file == "<string>" and frame.f_code.co_name == "__init__":  # written by dataclasses
        return False
    return not file.startswith(_OURS) and (
        file.startswith(_PACKAGES) or not file.startswith(_STANDARD_LIBRARY)
    )


def _written(frame: FrameType, line: int | None) -> str:
    return f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"
