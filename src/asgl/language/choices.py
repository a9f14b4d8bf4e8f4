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

A method may also be a function: it is given the options, each with the log-probabilities of its
tokens, and gives a score for each. Whatever the method, the probabilities of a select are the
shares of the options in what the model gives to all of them, `exp(sum of l[i])`.

An option that is a prefix of another, and a single option, are scored as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from asgl.errors import ConfigError


class Option(NamedTuple):
    """An option of a select, as a method sees it."""

    text: str
    """As it was given."""
    logprobs: Sequence[float]
    """Of each of its tokens, as a continuation of the prompt."""


NamedMethod: TypeAlias = Literal[
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "sum",
]
SelectMethod: TypeAlias = NamedMethod | Callable[[Sequence[Option]], Sequence[float]]
"""A method by its name, or a function of the options that gives a score for each. It is called on
the event loop, so it must be quick."""


def scores_of(
    method: NamedMethod,
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


def scores_by(
    method: Callable[[Sequence[Option]], Sequence[float]], options: Sequence[Option]
) -> list[float]:
    """What a method of the program says. ConfigError if that is not one number for each option."""
    given = method(options)
    try:
        scores = [float(score) for score in given]
    except (TypeError, ValueError):
        scores = []
    if len(scores) != len(options) or any(map(math.isnan, scores)):
        raise ConfigError(
            f"a method of select must give a number for each of the {len(options)} options, and "
            f"this one gave {given!r}"
        )
    return scores


def probabilities(logprobs: Sequence[Sequence[float]]) -> list[float]:
    """The share of each option in the probability that the model gives to all of them."""
    sums = [math.fsum(option) for option in logprobs]
    highest = max(sums)
    if highest == -math.inf:
        return [1 / len(sums)] * len(sums)
    shares = [math.exp(one - highest) for one in sums]
    return [share / math.fsum(shares) for share in shares]


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
