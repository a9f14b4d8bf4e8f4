"""The page: one HTML file that shows a run, and loads nothing from anywhere.

The model becomes JSON (`page_data`), which `page.js` draws. All text goes into the document as
text, never as markup.
"""

from __future__ import annotations

import html
import json
from importlib.resources import files
from math import isfinite
from typing import Any

from asgl.trace.model import Model
from asgl.trace.nodes import Op, Request, Run, Span, Stream

HOWS = (
    "given",
    "cached",
    "computed",
    "sampled",
    "constrained",
    "forced",
    "selected",
    "joined",
)
"""How tokens came to be, as the page numbers them."""


def page_of(model: Model, title: str) -> str:
    """The HTML of the page."""
    data = json.dumps(page_data(model), ensure_ascii=False, allow_nan=False, default=repr)
    # what would end the script element, or a line of a script
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    page = _asset("page.html")
    for name, text in (
        ("TITLE", html.escape(title.encode("utf-8", "replace").decode())),
        ("STYLE", _asset("page.css")),
        ("SCRIPT", _asset("page.js")),
        ("DATA", data.encode("utf-8", "backslashreplace").decode()),
    ):
        page = page.replace(f"<!--{name}-->", text, 1)
    return page


def _asset(name: str) -> str:
    return files("asgl.viewer.page").joinpath(name).read_text(encoding="utf-8")


def page_data(model: Model) -> dict[str, Any]:
    """What the page needs of the runs, as JSON values."""
    return {"hows": HOWS, "runs": [_run(run) for run in model.runs.values()]}


def _run(run: Run) -> dict[str, Any]:
    start = run.opened_at
    order = [stream for root in run.roots for stream in root.walk()]
    places = {stream.id: place for place, stream in enumerate(order)}

    def at(time: float | None) -> float | None:
        return None if time is None else _number(time - start, 6)

    return {
        "model": run.model,
        "device": run.device,
        "kernels": run.kernels,
        "capacity": run.capacity,
        "seconds": _number(run.now - start, 6),
        "counts": {state: number for state, number in run.counts.items() if number},
        "generated": run.generated,
        "hits": None if run.hit_rate is None else _number(run.hit_rate, 4),
        "evicted": run.evicted,
        "retractions": run.retractions,
        "streams": [
            {
                "id": stream.id,
                "up": places.get(stream.parent.id, -1) if stream.parent is not None else -1,
                "title": stream.title,
                "state": stream.state,
                "from": at(stream.opened_at),
                "seconds": _number(stream.seconds(run.now), 6),
                "tokens": stream.generated,
                "cached": None if stream.cached_share is None else _number(stream.cached_share, 4),
                "reason": stream.reason,
                "waited": _number(stream.waited, 6),
                "spans": _spans(stream),
                "ops": [_op(op, run) for op in stream.ops.values() if op.kind != "snapshot"],
            }
            for stream in order
        ],
        "steps": [
            [
                at(step.time),
                _number(step.run_seconds, 6),
                step.tokens,
                step.running,
                step.waiting,
                step.free,
                step.evictable,
                len(step.rows),
            ]
            for step in run.steps
        ],
        "requests": [
            _request(request, places, at)
            for request in run.requests.values()
            if request.submitted_at is not None
        ],
        "evictions": [[at(one.time), one.tokens, one.cause] for one in run.evictions],
    }


def _request(request: Request, places: dict[int, int], at: Any) -> list[Any]:
    op = request.op
    return [
        request.id,
        places.get(op.stream.id, -1) if op is not None else -1,
        at(request.submitted_at),
        at(request.submitted_at + (request.waited_before or request.waited))
        if request.submitted_at is not None and request.admitted_at is not None
        else None,
        at(request.first_token_at),
        at(request.ended_at),
        request.prompt_tokens,
        request.cached_tokens,
        request.generated,
        request.state,
        request.reason,
        [[at(time), cause] for time, cause in request.retractions],
    ]


def _op(op: Op, run: Run) -> dict[str, Any]:
    request = op.request
    return {
        "title": op.title,
        "state": op.state if request is None or op.ended_at is not None else request.state,
        "seconds": _number(op.seconds(run.now), 6),
        "reason": op.reason,
        "tokens": sum(one.generated for one in op.requests),
        "prompt": request.prompt_tokens if request is not None else 0,
        "cached": request.cached_tokens if request is not None else 0,
        "rejected": [[one.text, one.reason] for one in op.rejected],
        "tools": [
            [
                call.tool,
                json.dumps(call.arguments, ensure_ascii=False, default=repr),
                call.state,
                _number(call.seconds, 6),
                call.error or call.result,
            ]
            for call in op.tools
        ],
        "budgets": [[one.spent, one.tokens, one.seconds] for one in op.budgets],
    }


def _spans(stream: Stream) -> list[list[Any]]:
    """Text and how it came; a token by itself only where its probability is known. While an op
    runs, what it has said so far comes last."""
    found: list[list[Any]] = []
    for span in stream.spans():
        _append(found, span)
    live = stream.op
    if live is not None and live.ended_at is None and live.request is not None:
        for token in live.request.tokens:
            if token.text:
                _append(found, Span(token.text, token.source, token))
    return found


def _append(found: list[list[Any]], span: Span) -> None:
    how = HOWS.index(span.how) if span.how in HOWS else 0
    token = span.token
    if token is not None and token.logprob is not None:
        top = [[other.text, _number(other.logprob, 4)] for other in token.top]
        found.append([span.text, how, _number(token.logprob, 4), top])
    elif found and found[-1][1] == how and len(found[-1]) == 2:
        found[-1][0] += span.text
    else:
        found.append([span.text, how])


def _number(value: float, digits: int) -> float | None:
    """JSON has no infinity."""
    return round(value, digits) if isfinite(value) else None
