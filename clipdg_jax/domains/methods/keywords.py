"""A filter on the words of the caption. Needs no image.

Each domain has a list of words that name a medium: photograph, sketch, collage. An image is
described by indicators: whether its caption has any word of each of the three lists, and whether
it has each single one; a readout (logistic regression) of the training labels weighs them. So a
listed word that no training caption has still counts as much as its list does, and one that
misleads (a `photo` in "photo by") is weighed down.

A caption matches a listed word whole, in any case, and in its simple plural (sketches, photos,
tapestries); entries of several words match these in a row, whatever stands between them but letters
and digits: "oil painting" is found in "Oil-Paintings". Words are runs of letters, digits and
marks of any script; where a script writes no spaces between words, they cannot be told apart and
are not found.

`learn_words` adds, from the training captions, the words with the highest mutual information with
the domain.
"""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int, UInt8

from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import readout as readout_lib
from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError

# Words of English captions that name a medium, for the config's fields of the same names.
WORDS = {
    "natural": (
        "photo, photograph, photography, photographed, photographer, snapshot, selfie, close up, "
        "closeup, macro, bokeh, dslr, telephoto, long exposure, aerial view, wildlife"
    ),
    "rendition": (
        "drawing, drawn, sketch, sketched, doodle, pencil, graphite, charcoal, pastel, crayon, "
        "ink, line art, painting, painted, painter, oil on canvas, canvas, acrylic, watercolor, "
        "watercolour, gouache, fresco, mural, graffiti, art, artwork, artist, illustration, "
        "illustrated, illustrator, cartoon, caricature, comic, manga, anime, clipart, clip art, "
        "vector, icon, logo, emoji, emblem, sticker, engraving, etching, woodcut, linocut, "
        "lithograph, screen print, art print, stencil, silhouette, coloring page, colouring page, "
        "tattoo, mosaic, stained glass, embroidery, embroidered, cross stitch, tapestry, quilt, "
        "crochet, knitted, origami, papercraft, sculpture, figurine, carving, render, rendering, "
        "3d, cgi, pixel art, video game, blueprint"
    ),
    "ambiguous": (
        "collage, montage, photomontage, poster, banner, flyer, brochure, infographic, diagram, "
        "screenshot, meme, quote, cover, magazine, packaging, mockup, advertisement, template, "
        "design, graphic, wallpaper, toy, statue, t shirt, mug"
    ),
}


class Vocabulary:
    """The words that are looked for.

    Attributes:
      listed: for each domain, its words (several joined by one space), as `words` gives them.
      learned: further words.
    """

    def __init__(self, listed: Sequence[Sequence[str]], learned: Sequence[str] = ()):
        self.listed = tuple(tuple(entries) for entries in listed)
        self.learned = tuple(learned)
        entries = [entry for group in self.listed for entry in group]
        groups = [number for number, group in enumerate(self.listed) for _ in group]
        # What stands in a caption -> the columns that it sets.
        self._columns: dict[str, tuple[int, ...]] = {}
        first = len(self.listed)
        for place, (entry, group) in enumerate(zip(entries, groups, strict=True)):
            self._columns[entry] = (group, first + place)
        for entry in entries:  # After all words as they are listed, which go before plurals.
            for plural in _plurals(entry):
                self._columns.setdefault(plural, self._columns[entry])
        for place, word in enumerate(self.learned, first + len(entries)):
            self._columns.setdefault(word, (place,))
        self._longest = max((len(form.split()) for form in self._columns), default=0)
        self.size = first + len(entries) + len(self.learned)

    def indicators(self, captions: Sequence[str]) -> UInt8[np.ndarray, "n d"]:
        """1 where a caption has: any word of each list, each listed word, each learned one."""
        found = np.zeros((len(captions), self.size), np.uint8)
        for row, caption in zip(found, captions, strict=True):
            split = words(caption)
            for length in range(1, self._longest + 1):
                for start in range(len(split) - length + 1):
                    form = " ".join(split[start : start + length])
                    for column in self._columns.get(form, ()):
                        row[column] = 1
        return found

    def knows(self, word: str) -> bool:
        """Whether this word by itself is looked for."""
        return word in self._columns


def words(text: str) -> list[str]:
    """The words of a text, in order, case-folded, in Unicode's compatible composed form (NFKC)."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Not `\w`, which leaves out the vowel signs of many scripts.
    return "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in folded).split()


_ASCII = re.compile(r"[a-z0-9]+")


def _plurals(entry: str) -> list[str]:
    """Plurals of the last word: -s, -es, and -ies for -y."""
    found = [entry + "s", entry + "es"]
    return found + [entry[:-1] + "ies"] if entry.endswith("y") else found


def parse(lists: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The comma-separated words of each domain, in the domains' order, each once.

    Raises UserError for a word in two lists, or an entry without any letter or digit.
    """
    parsed = []
    owner: dict[str, str] = {}
    for domain in inputs_lib.DOMAINS:
        entries = []
        for text in filter(None, map(str.strip, lists[domain].split(","))):
            entry = " ".join(words(text))
            if not entry:
                raise UserError(f"keywords.{domain}: {text!r} is no word; use words and commas")
            if owner.setdefault(entry, domain) != domain:
                raise UserError(
                    f"keywords.{domain}: {entry!r} is in keywords.{owner[entry]} too; keep one"
                )
            entries.append(entry)
        parsed.append(tuple(dict.fromkeys(entries)))
    return tuple(parsed)


def mutual_information(
    present: Int[np.ndarray, "w 3"], total: Int[np.ndarray, "3"]
) -> Float64[np.ndarray, " w"]:
    """Mutual information, in nats, of a word's presence and the domain.

    sum over presence a and domain k of p(a, k) log(p(a, k) / (p(a) p(k))), 0 log 0 = 0.

    Args:
      present: captions of each domain that have the word.
      total: captions of each domain.
    """
    joint = np.stack([present, total - present]) / total.sum()  # a w k
    apart = joint.sum(axis=2, keepdims=True) * (total / total.sum())
    ratio = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log(ratio)).sum(axis=(0, 2))


def informative(
    captions: Sequence[str], domain: Int[np.ndarray, " n"], count: int, known: Vocabulary
) -> tuple[str, ...]:
    """The `count` words, beside those known, that say most about the domain.

    By mutual information, equal ones in alphabetical order; fewer where there are no more.
    """
    present: dict[str, list[int]] = collections.defaultdict(lambda: [0] * len(inputs_lib.DOMAINS))
    for caption, number in zip(captions, domain.tolist(), strict=True):
        for word in set(words(caption)):
            present[word][number] += 1
    candidates = sorted(word for word in present if not known.knows(word))
    if not candidates:
        return ()
    total = np.bincount(domain, minlength=len(inputs_lib.DOMAINS))
    gain = mutual_information(np.array([present[word] for word in candidates]), total)
    # Rounded, so that the last bit does not decide between equal ones.
    order = np.argsort(-np.round(gain, 12), kind="stable")[:count]
    return tuple(candidates[i] for i in order)


class Keywords(method.Method):
    """A vocabulary and a readout of its indicators.

    Config: `natural`, `rendition`, `ambiguous`, comma-separated words (`WORDS` has English ones);
    `learn_words`, how many more to learn; `l2`, the readout's penalty.
    """

    name: ClassVar[str] = "keywords"

    def __init__(self, vocabulary: Vocabulary, readout: readout_lib.Readout):
        self.vocabulary, self.readout = vocabulary, readout

    @classmethod
    def fit(
        cls,
        train: examples_lib.Examples,
        validation: examples_lib.Examples,
        context: method.Context,
    ) -> Self:
        """Learns the words asked for, then the weights of all.

        Raises:
          UserError: a list is wrong, there are no words, or fewer than two domains have labels.
        """
        config = context.config
        vocabulary = Vocabulary(parse(config))
        if config.learn_words < 0:
            raise UserError(f"keywords.learn_words: {config.learn_words}; use 0 or more")
        captions = [caption for inputs in train.batches() for caption in inputs.captions]
        if config.learn_words:
            learned = informative(captions, train.domain, config.learn_words, vocabulary)
            vocabulary = Vocabulary(vocabulary.listed, learned)
        if vocabulary.size == len(vocabulary.listed):
            raise UserError(
                "keywords: no words are listed and none are learned; set keywords.learn_words, or "
                "list some under keywords.natural and keywords.rendition"
            )
        # Not standardised: a word of one caption is no evidence like a word of a thousand.
        readout = readout_lib.fit(
            vocabulary.indicators(captions), train.domain, config.l2, standardise=False
        )
        return cls(vocabulary, readout)

    def score(self, inputs: inputs_lib.Inputs) -> Float32[np.ndarray, "n 2"]:
        """Probabilities of natural and of rendition, by the captions alone."""
        found = self.readout.probabilities(self.vocabulary.indicators(inputs.captions))
        return found[:, :2].astype(np.float32)

    def state(self) -> method.State:
        """The words and their weights."""
        meta = {"listed": list(map(list, self.vocabulary.listed))}
        return method.State(
            self.readout.arrays(), {**meta, "learned": list(self.vocabulary.learned)}
        )

    @classmethod
    def load(cls, state: method.State, mesh: jax.sharding.Mesh) -> Self:
        """The method that `state` was taken of; no device is used."""
        vocabulary = Vocabulary(state.meta["listed"], state.meta["learned"])
        return cls(vocabulary, readout_lib.Readout.from_arrays(state.arrays))

    def describe(self) -> str:
        """What it looks at."""
        listed = sum(map(len, self.vocabulary.listed))
        return f"words of the caption: {listed} listed, {len(self.vocabulary.learned)} learned"
