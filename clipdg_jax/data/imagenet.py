"""The classes of ImageNet-1k: WordNet ids, in the usual order, and their names for prompts.

The data are assets that `tools/make_imagenet_names.py` writes.
"""

from __future__ import annotations

import functools
from importlib import resources

CLASSES = 1000


@functools.cache
def _table() -> tuple[tuple[str, str], ...]:
    lines = _asset("imagenet_classes.tsv").splitlines()
    pairs = (line.split("\t") for line in lines)
    return tuple((identity, name) for identity, name in pairs)


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """`n01440764`, ...: class i of every model and test set is the i-th in order of these."""
    return tuple(identity for identity, _ in _table())


@functools.cache
def names() -> dict[str, str]:
    """WordNet id -> OpenAI's name of the class. Two names occur twice (missile, sunglasses)."""
    return dict(_table())


@functools.cache
def templates() -> tuple[str, ...]:
    """OpenAI's 80 prompts, each with {} for the name."""
    return tuple(_asset("openai_templates.txt").splitlines())


def _asset(name: str) -> str:
    return (resources.files("clipdg_jax.data") / "assets" / name).read_text(encoding="utf-8")
