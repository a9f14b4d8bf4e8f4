"""Choosing among options by their log-probabilities.

Each option is tokenized on its own and scored as a continuation of the prompt. With `l[i][j]` the
log-probability of token j of option i given the prompt and the tokens before it, the methods score
option i by

    token_length_normalized              the mean of l[i]
    sum                                  the sum of l[i], the log-probability of the whole option:
                                         favours short ones
    greedy_token_selection               keep the options with the best first token, of these the
                                         ones with the best second token, and so on until one is
                                         left; an option that is shorter than another goes on with
                                         the mean of l[i]
    unconditional_likelihood_normalized  the mean of l[i][j] - u[i][j], u being the same without the
                                         prompt

and the highest score wins, the earlier option if two are equal (so the first of duplicates). These
are the choices methods of SGLang, and `sum`.

The scores of greedy_token_selection are the values at the position that decided, -inf for options
that were out before. Without the prompt means after the beginning-of-text token alone. For a model
that has none, the first token of an option has `u = 0`, as in SGLang, and the others continue the
option's own beginning.

An option that is a prefix of another, and a single option, are scored as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

SelectMethod: TypeAlias = Literal[
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "sum",
]


def scores_of(
    method: SelectMethod,
    logprobs: Sequence[Sequence[float]],
    unconditional: Sequence[Sequence[float]] = (),
) -> list[float]:
    """A score per option, from the log-probabilities of its tokens; every option has at least
    one."""
    if method == "token_length_normalized":
        return [_mean(option) for option in logprobs]
    if method == "sum":
        return [math.fsum(option) for option in logprobs]
    if method == "greedy_token_selection":
        return _greedy_scores(logprobs)
    return [
        _mean([given - alone for given, alone in zip(option, base, strict=True)])
        for option, base in zip(logprobs, unconditional, strict=True)
    ]


def best(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=scores.__getitem__)


def _greedy_scores(logprobs: Sequence[Sequence[float]]) -> list[float]:
    longest = max(map(len, logprobs))
    padded = [[*option, *[_mean(option)] * (longest - len(option))] for option in logprobs]
    left = list(range(len(padded)))
    scores = [-math.inf] * len(padded)
    for position in range(longest):
        column = {option: padded[option][position] for option in left}
        highest = max(column.values())
        survivors = [option for option in left if column[option] == highest]
        if len(survivors) == 1 or position == longest - 1:
            for option, value in column.items():
                scores[option] = value
            break
        left = survivors
    return scores


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
