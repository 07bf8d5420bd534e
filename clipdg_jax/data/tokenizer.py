"""CLIP's byte-pair tokeniser, with ids equal to open_clip's.

The merges are a data asset (`assets/clip_merges.txt.gz`, written by `tools/make_vocabulary.py`);
the byte-pair encoding itself is done by Hugging Face's `tokenizers`, in Rust. What comes before it
is open_clip's cleaning: ftfy, HTML entities unescaped twice, white space collapsed, lower case.
Most web captions are plain ASCII, on which ftfy and unescaping change nothing: they skip both.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32, UInt16

from clipdg_jax.errors import UserError

FULL_VOCABULARY = 49408
CONTEXT_LENGTH = 77

# Every byte alone and at a word's end, then the merges, then these two.
_BYTE_TOKENS = 512
_SOT = "<start_of_text>"
_EOT = "<end_of_text>"
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The same, for text in lower case that is all ASCII and has no white space but blanks.
_ASCII_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")
_SPECIAL = re.compile(f"{_SOT}|{_EOT}")


def clean(text: str) -> str:
    """open_clip's cleaning of a caption (its `_clean_lower`)."""
    # On printable ASCII without '&', ftfy and html.unescape are the identity.
    if "&" in text or not (text.isascii() and text.isprintable()):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte, in the order of CLIP's first 256 ids.

    Printable Latin-1 characters stand for themselves, and come first; the other bytes take the
    code points from 256 on (GPT-2's table).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(c) for c in printable] + [chr(256 + n) for n in range(others)]


@functools.cache
def _merges() -> list[tuple[str, str]]:
    """All 48 894 merges of CLIP's vocabulary, the most frequent first."""
    asset = resources.files("clipdg_jax.data") / "assets" / "clip_merges.txt.gz"
    lines = gzip.decompress(asset.read_bytes()).decode().splitlines()
    return [(left, right) for left, right in (line.split(" ") for line in lines)]


class Tokenizer:
    """Text to token ids; make one with `get_tokenizer`.

    Attributes:
      vocab_size: number of ids.
      sot, eot: ids of the start and the end of a text; `eot` is the largest id, as CLIP's text
        tower expects, and 0 pads.
      hash: names the function from text to ids, for a dataset's manifest.
    """

    def __init__(self, vocab_size: int) -> None:
        least = _BYTE_TOKENS + 2
        if not least <= vocab_size <= FULL_VOCABULARY:
            raise UserError(
                f"vocab_size: {vocab_size} is out of range; give {least} to {FULL_VOCABULARY}"
            )
        merges = _merges()[: vocab_size - least]
        alphabet = _byte_alphabet()
        words = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
        self.vocab_size = vocab_size
        self.sot = vocab_size - 2
        self.eot = vocab_size - 1
        text = "\n".join(["clip-bpe 1", *words])
        self.hash = f"clip-{vocab_size}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._bpe = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocab={word: i for i, word in enumerate(words)},
                merges=merges,
                end_of_word_suffix="</w>",
            )
        )
        self._bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Split(
                    tokenizers.Regex(_WORDS), behavior="removed", invert=True
                ),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

        # Words repeat from caption to caption, and each is encoded by itself.
        self._word = functools.lru_cache(1 << 16)(self._ids)

    def __reduce__(self) -> tuple:
        return get_tokenizer, (self.vocab_size,)

    def encode(self, texts: Iterable[str]) -> list[UInt16[np.ndarray, " t"]]:
        """Ids of each text from SOT to EOT, unpadded, at most 77 of them (EOT always the last)."""
        return [self._encode(text) for text in texts]

    def __call__(
        self, texts: Sequence[str], context_length: int = CONTEXT_LENGTH
    ) -> Int32[np.ndarray, "n l"]:
        """Ids of each text, cut to `context_length` with EOT last, or padded with zeros."""
        if isinstance(texts, str):
            raise TypeError("texts is one string; give a list of strings")
        rows = [fit_length(tokens, context_length, self.eot) for tokens in self.encode(texts)]
        return np.stack(rows) if rows else np.zeros((0, context_length), np.int32)

    def _encode(self, text: str) -> UInt16[np.ndarray, " t"]:
        text = clean(text)
        ids = [self.sot]
        if _SOT in text or _EOT in text:
            for piece, special in _split_special(text):
                ids += self._ids(piece)
                ids += {_SOT: [self.sot], _EOT: [self.eot], "": []}[special]
        elif text.isascii():
            for word in _ASCII_WORD.findall(text):
                ids += self._word(word)
        else:
            ids += self._ids(text)
        return np.array([*ids[: CONTEXT_LENGTH - 1], self.eot], np.uint16)

    def _ids(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids


def _split_special(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of (ordinary text, the special word that follows it, or "" at the end).

    open_clip's pattern finds a special word only where a match can begin: at the start, after
    white space, a letter or a number, or after another special word. Within a run of other
    characters, as in "!<end_of_text>", it is part of the run, and is ordinary text.
    """
    done = 0
    for match in _SPECIAL.finditer(text):
        before = text[done : match.start()]
        if before and unicodedata.category(before[-1])[0] not in "LNZ":
            continue
        yield before, match.group()
        done = match.end()
    yield text[done:], ""


def fit_length(
    tokens: UInt16[np.ndarray, " t"], context_length: int, eot: int
) -> Int32[np.ndarray, " l"]:
    """Tokens as one row of a batch: zero-padded, or cut with EOT in the last place."""
    row = np.zeros(context_length, np.int32)
    kept = min(len(tokens), context_length)
    row[:kept] = tokens[:kept]
    if len(tokens) > context_length:
        row[-1] = eot
    return row


@functools.lru_cache(maxsize=8)
def get_tokenizer(vocab_size: int = FULL_VOCABULARY) -> Tokenizer:
    """CLIP's tokeniser, or one of its first `vocab_size - 514` merges.

    A small model wastes most of its parameters on 49 408 rows of embedding. Dropping the rarest
    merges keeps the ids of all others; SOT and EOT move to `vocab_size - 2` and `vocab_size - 1`.

    Raises:
      UserError: `vocab_size` is not within 514 and 49 408.
    """
    return Tokenizer(vocab_size)
