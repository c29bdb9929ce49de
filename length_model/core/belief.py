"""What is believed of an answer's length, and how the belief changes while the answer grows. Pure.

A belief is a set of equally likely totals (`simcore.types.LengthBelief`); everything follows from its atoms.
"""

from __future__ import annotations

from simcore.types import LengthBelief

DEFAULT_PRIOR = LengthBelief(
    (12, 33, 58, 93, 120, 150, 185, 216, 248, 273, 299, 327, 357, 389, 424, 472, 533, 615, 754, 938)
)
"""Quantiles 2.5 %, 7.5 %, ... 97.5 % of answer tokens over the 10,000 ShareGPT validation rows of Block
(data set `block_a30/sharegpt_val_10k_llama2`, Llama-2 tokenizer). What holds when nothing is known of a request."""

OVERDUE_TOKENS = 10
"""When a request has outlived its belief, it is expected to end this many tokens from now (Block's rule)."""


def known(tokens: int) -> LengthBelief:
    """The belief of someone who knows the length (>= 1)."""
    return LengthBelief((max(1, tokens),))


def truncated(belief: LengthBelief, max_tokens: int) -> LengthBelief:
    """The belief under a limit on the answer: every atom above `max_tokens` becomes `max_tokens`."""
    if belief.atoms_tokens[-1] <= max_tokens:
        return belief
    return LengthBelief(tuple(min(a, max(1, max_tokens)) for a in belief.atoms_tokens))


def given_produced(belief: LengthBelief, produced_tokens: int) -> LengthBelief:
    """The belief of the *total* length once `produced_tokens` have come and the request still runs.

    Atoms that were reached already are impossible and drop out, the rest stay equally likely. When none is left,
    one atom `produced_tokens + OVERDUE_TOKENS` remains.
    """
    if belief.atoms_tokens[0] > produced_tokens:
        return belief
    left = tuple(a for a in belief.atoms_tokens if a > produced_tokens)
    return LengthBelief(left) if left else LengthBelief((produced_tokens + OVERDUE_TOKENS,))
