"""In-batch sharing: of several requests that share a prefix which nobody has computed yet, one
computes it for all.

What a running request has planned of its prompt, this step included, others may read at once: a
waiting request that shares it is admitted, and *borrows* the slots. Their keys and values are there
before anything reads them, for each layer of a step stores those of all its tokens first, and steps
run one after the other. When the lender's step has returned the prefix is cached, and the borrower
has it from the cache like any other.

    lender    p p p p p p p a b         a prompt of 9 tokens, all of them new: 9 are computed
    borrower  - - - - - - - c           another of 8, of which 7 are in the lender's slots: 1 is computed

What the lender has yet to plan, since its prompt is too long for one step, needs no care: it takes
all of the step, and comes before those that wait in the next one. With two steps in flight a loan
may be of both: then it is settled in two parts.
"""

from __future__ import annotations

from collections.abc import Iterable

from asgl.scheduling.radix_cache import common_prefix
from asgl.scheduling.request import Request


def find_lender(request: Request, running: Iterable[Request]) -> tuple[Request | None, int]:
    """Whoever has planned most of a waiting request's tokens, and how many; None if nobody has more
    than the cache.

    One token at least is left for the request itself.
    """
    lender, most = None, request.matched
    last = len(request.tokens) - 1
    for other in running:
        if most >= last:
            break  # nobody has more: of many equal prompts each is compared with one
        # a quick look at the first token that counts, before the whole comparison
        if (
            other.lends
            and len(other.slots) > most
            and other.namespace == request.namespace
            and other.tokens[most : most + 1] == request.tokens[most : most + 1]
        ):
            shared = min(common_prefix(other.tokens, request.tokens), len(other.slots), last)
            if shared > most:
                lender, most = other, shared
    return lender, most
