"""The inputs of the training benchmarks: random pictures, and captions of web-like lengths.

NumPy alone, so that the peer's Python makes the same.
"""

from __future__ import annotations

import numpy as np

CONTEXT = 77
VOCABULARY = 49408
IMAGE_SIZE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def lengths(count: int, seed: int = 0, context: int = CONTEXT) -> np.ndarray:
    """Tokens of captions, SOT and EOT included: int64 [count], mean 16 of 77, with a long tail.

    Log-normal words around a median of 11, which is what "about 16 tokens, some at the limit"
    comes to; cut at the context, as the tokeniser does (0.4 % of captions).
    """
    words = np.random.default_rng(seed).lognormal(np.log(11.0), 0.7, count)
    return np.clip(2 + np.rint(words), 3, context).astype(np.int64)


def tokens(count: int, seed: int = 0, context: int = CONTEXT, vocab: int = VOCABULARY):
    """Captions int32 [count, context]: SOT, random words, EOT (the largest id), zeros."""
    words = np.random.default_rng((seed, 1)).integers(1, vocab - 2, (count, context))
    ends = lengths(count, seed, context)[:, None] - 1
    column = np.arange(context)[None]
    rows = np.where(column < ends, words, np.where(column == ends, vocab - 1, 0))
    rows[:, 0] = vocab - 2
    return rows.astype(np.int32)


def images(count: int, seed: int = 0, size: int = IMAGE_SIZE) -> np.ndarray:
    """Random pixels, uint8 [count, size, size, 3]."""
    return np.random.default_rng((seed, 2)).integers(0, 256, (count, size, size, 3), np.uint8)
