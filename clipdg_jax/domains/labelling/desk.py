"""What the labelling page works on: one draw of a store, seen by position.

A `Desk` takes an annotator's own labels, an `Adjudication` final decisions; the page and the
server treat them alike.
"""

from __future__ import annotations

import collections
import threading

from clipdg_jax.data import files, resolve, schema, shards
from clipdg_jax.domains import labels
from clipdg_jax.errors import UserError

# One letter a domain, as on the page; the dot is an image without a label.
LETTERS = {"natural": "N", "rendition": "R", "ambiguous": "A"}
NONE = "."
assert tuple(LETTERS) == schema.DOMAINS


class NoImageError(Exception):
    """This record holds nothing that a browser could show."""


def image_type(data: bytes) -> str | None:
    """The media type of an image's bytes, or None for what browsers do not show.

    Judged by the bytes alone, and never SVG, which may carry scripts.
    """
    starts = {
        b"\xff\xd8\xff": "image/jpeg",
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"GIF87a": "image/gif",
        b"GIF89a": "image/gif",
        b"BM": "image/bmp",
    }
    for start, kind in starts.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return None


class Desk:
    """One draw, for annotators who do not see each other's labels.

    Attributes:
        draw: the draw.
        tag: names the draw and its content. Pages carry it in every request, so that a page left
            open from another draw, or from another file, can neither show nor label the wrong
            image.
        adjudicate: whether what is set are final decisions.
    """

    adjudicate = False

    def __init__(self, store: labels.Store, source: resolve.Source, draw: int):
        found = [d for d in store.draws() if d.id == draw and d.fingerprint == source.fingerprint]
        if not found:
            raise UserError(f"{store.path}: has no draw {draw} of {source.name}; make one first")
        self.store = store
        self.draw = found[0]
        self._source = source
        self._items = store.items(draw)
        self._positions = {item.key: n for n, item in enumerate(self._items)}
        content = [source.fingerprint, [(item.index, item.key) for item in self._items]]
        self.tag = f"{draw}-{files.digest(content)[:16]}"

    def __len__(self) -> int:
        return len(self._items)

    def image(self, position: int) -> tuple[bytes, str]:
        """The stored bytes at a position, 0 <= position < len, and their media type.

        Raises NoImageError where the record is damaged or is no image that browsers show.
        """
        try:
            data = self._source.record(self._items[position].index).image
        except shards.RecordError as error:
            raise NoImageError("this record is damaged") from error
        kind = image_type(data)
        if kind is None:
            raise NoImageError("this image has a format that browsers do not show")
        return data, kind

    def letters(self, annotator: str) -> str:
        """One letter a position: this annotator's labels now."""
        return self._letters(self.store.labels(self.draw.id, annotator))

    def set(self, annotator: str, position: int, domain: str | None) -> None:
        """Labels one position, None clears it; on the disk on return. UserError: it cannot be."""
        self.store.set(annotator, self.draw.id, self._items[position].key, domain)

    def undo(self, annotator: str) -> tuple[int, str | None] | None:
        """Takes this annotator's last change back: the position and its label now, or None."""
        undone = self.store.undo(annotator, self.draw.id)
        return undone and (self._positions[undone[0]], undone[1])

    def votes(self) -> list[dict[str, str]] | None:
        """Per position what each annotator said, for those who may see it."""
        return None

    def _letters(self, found: list[labels.Label]) -> str:
        letters = [NONE] * len(self)
        for label in found:
            letters[self._positions[label.key]] = LETTERS[label.domain]
        return "".join(letters)


class Adjudication(Desk):
    """One draw with everybody's labels in sight; what is set are final decisions.

    Undo goes back to where this desk was opened: decisions have no other memory of their order.
    """

    adjudicate = True

    def __init__(self, store: labels.Store, source: resolve.Source, draw: int):
        super().__init__(store, source, draw)
        self._lock = threading.Lock()
        self._history: dict[str, list[tuple[int, str | None]]] = collections.defaultdict(list)

    def letters(self, annotator: str) -> str:
        """One letter a position: the decisions now, whoever took them."""
        return self._letters(self.store.adjudications(self.draw.id))

    def set(self, annotator: str, position: int, domain: str | None) -> None:
        """Decides on one position, None takes a decision back; on the disk on return."""
        with self._lock:
            before = self._decision(position)
            if before != domain:
                self.store.adjudicate(annotator, self.draw.id, self._items[position].key, domain)
                self._history[annotator].append((position, before))

    def undo(self, annotator: str) -> tuple[int, str | None] | None:
        """Takes back the last decision that this annotator took at this desk."""
        with self._lock:
            if not self._history[annotator]:
                return None
            position, before = self._history[annotator][-1]
            self.store.adjudicate(annotator, self.draw.id, self._items[position].key, before)
            self._history[annotator].pop()
            return position, before

    def votes(self) -> list[dict[str, str]]:
        """Per position what each annotator said of the image, in whichever draw, by name."""
        found: list[dict[str, str]] = [{} for _ in self._items]
        for label in self.store.labels():  # oldest first: the latest of each stays
            position = self._positions.get(label.key)
            if position is not None and label.fingerprint == self.draw.fingerprint:
                found[position][label.annotator] = label.domain
        return [dict(sorted(votes.items())) for votes in found]

    def _decision(self, position: int) -> str | None:
        key = self._items[position].key
        decided = (a.domain for a in self.store.adjudications(self.draw.id) if a.key == key)
        return next(decided, None)
