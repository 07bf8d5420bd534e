"""The label store: who said what about which image, and how that image was chosen.

One SQLite file. What is labelled comes in draws: a list of records of one dataset, chosen at
random or by a rule, whose origin (order, seed, probability, size of the population) is kept,
because only random draws may calibrate a classifier. Labels are never overwritten: each change is
a row of its own, an undone change stays marked as such, and the current label is the last change
that was not undone. Triggers in the file hold this even against other programs.

The file is in SQLite's write-ahead-log mode, which needs a local disk.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipdg_jax.data import files, resolve, schema
from clipdg_jax.domains import label_file
from clipdg_jax.errors import UserError

ORDERS = ("random", "uncertain", "disagreement", "audit", "stratified")
# Each record of the population had the same known chance of being drawn: these may calibrate.
RANDOM_ORDERS = ("random", "audit")
# Each had a known chance; in a stratified draw chances differ, so that figures need weights.
KNOWN_ORDERS = (*RANDOM_ORDERS, "stratified")

_MAX_NAME = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One record of a draw.

    index: of the record within its dataset. probability: with which a record like this one was
    drawn; NaN where that is unknown, because a rule chose it.
    """

    index: int
    key: str
    probability: float = math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """Where a list of records came from.

    dataset: its name. fingerprint: of the dataset's content. order: one of `ORDERS`. size: records
    drawn. population: records that could have been drawn. time: seconds since 1970.
    """

    id: int
    dataset: str
    fingerprint: str
    order: str
    seed: int
    size: int
    population: int
    time: float


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """What one annotator says about one record now; `time` in seconds since 1970."""

    dataset: str
    fingerprint: str
    key: str
    index: int
    annotator: str
    domain: str
    time: float
    draw: int


class Store:
    """Draws, labels and decisions in one SQLite file, made where there is none.

    Safe for several threads, and for several processes that each open their own. A write has
    reached the disk when the call returns: killing the process afterwards loses nothing.

    Annotators are told apart by name only; whoever exposes a store to others must see to it that
    each passes the own name. Under a name, only that annotator's labels can be changed.

    Raises UserError where the file cannot be opened, is damaged, or is not a label store, and from
    every method where the disk is full or the file is locked for long.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file = label_file.LabelFile(self.path)

    def __reduce__(self):
        return Store, (self.path,)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is pending, since every write was committed."""
        self._file.close()

    def add_draw(
        self,
        dataset: resolve.Source,
        order: str,
        seed: int,
        items: Sequence[Item],
        population: int | None = None,
    ) -> int:
        """Records a draw from `dataset` and returns its id; the same draw again keeps its id.

        Args:
            dataset: what was drawn from.
            order: how the items were chosen and ordered, one of `ORDERS`.
            seed: of the draw; 0 where the order has none.
            items: the records in the order in which they are to be labelled, as `orders` makes
                them. Probabilities must be known for the orders in `KNOWN_ORDERS`.
            population: how many records could have been drawn; None is all of the dataset.

        Raises:
            UserError: two of the items have one key.
            ValueError: unknown order, no items, an index outside the dataset, or a random draw
                without probabilities.
        """
        if order not in ORDERS:
            raise ValueError(f"order {order!r}; must be one of {ORDERS}")
        if not items or not all(0 <= item.index < len(dataset) for item in items):
            raise ValueError(f"need items with indices below {len(dataset)}")
        if population is None:
            population = len(dataset)
        if not len(items) <= population <= len(dataset):
            raise ValueError(f"{len(items)} items of a population of {population}")
        if order in KNOWN_ORDERS and not all(0 < item.probability <= 1 for item in items):
            raise ValueError(f"a draw in {order} order needs the probability of each item")
        seen: set[str] = set()
        for item in items:
            if item.key in seen:
                raise UserError(
                    f"{dataset.name}: two of its records have the key {item.key!r}; import it "
                    "again so that keys are unique"
                )
            seen.add(item.key)
        digest = files.digest([[i.index, i.key, repr(i.probability)] for i in items])
        identity = (dataset.fingerprint, order, seed, digest)
        with self._file.transaction() as connection:
            found = connection.execute(
                'SELECT id FROM draws WHERE (fingerprint, "order", seed, items) = (?, ?, ?, ?)',
                identity,
            ).fetchone()
            if found:
                return found[0]
            draw = connection.execute(
                'INSERT INTO draws (fingerprint, "order", seed, items, dataset, population, time) '
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*identity, dataset.name, population, time.time()),
            ).lastrowid
            # SQLite has no NaN; it would become NULL, so that is what is written.
            rows = [
                (draw, n, i.key, i.index, None if math.isnan(i.probability) else i.probability)
                for n, i in enumerate(items)
            ]
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
            assert draw is not None
            return draw

    def draws(self) -> list[Draw]:
        """All draws, oldest first."""
        query = (
            'SELECT id, dataset, fingerprint, "order", seed, '
            "(SELECT COUNT(*) FROM items WHERE draw = draws.id), population, time "
            "FROM draws ORDER BY id"
        )
        return [Draw(*row) for row in self._file.rows(query)]

    def items(self, draw: int) -> list[Item]:
        """The records of a draw in their order. UserError where there is no such draw."""
        query = "SELECT record, key, probability FROM items WHERE draw = ? ORDER BY position"
        rows = self._file.rows(query, draw)
        if not rows:
            raise UserError(f"{self.path}: has no draw {draw}; its draws are {self._draw_ids()}")
        return [Item(i, key, math.nan if p is None else p) for i, key, p in rows]

    def set(self, annotator: str, draw: int, key: str, domain: str | None) -> None:
        """Labels one record of a draw; None takes the label off. It is on the disk on return.

        Raises UserError on a key that is not in the draw, an unknown domain or a bad name.
        """
        self.set_all(annotator, draw, {key: domain})

    def set_all(self, annotator: str, draw: int, domains: Mapping[str, str | None]) -> None:
        """Like `set` for many keys: all of them or, on any error, none.

        Saying again what is already said is no change, and so nothing to undo.
        """
        self._check(annotator, domains)
        with self._file.transaction() as connection:
            known = self._known(connection, draw, domains)
            current = self._current(connection, annotator, draw, known)
            now = time.time()
            connection.executemany(
                "INSERT INTO changes (annotator, draw, key, domain, time) VALUES (?, ?, ?, ?, ?)",
                [
                    (annotator, draw, key, domain, now)
                    for key, domain in domains.items()
                    if current.get(key) != domain
                ],
            )

    def undo(self, annotator: str, draw: int) -> tuple[str, str | None] | None:
        """Takes back this annotator's last change in this draw; again, the one before it.

        Returns the key and the domain that it now has again (None: no label), or None where
        nothing is left to undo. The labels of others are never touched.
        """
        self._check(annotator, {})
        with self._file.transaction() as connection:
            last = connection.execute(
                "SELECT id, key FROM changes WHERE annotator = ? AND draw = ? AND NOT undone "
                "ORDER BY id DESC LIMIT 1",
                (annotator, draw),
            ).fetchone()
            if last is None:
                return None
            connection.execute("UPDATE changes SET undone = 1 WHERE id = ?", last[:1])
            return last[1], self._current(connection, annotator, draw, [last[1]]).get(last[1])

    def labels(self, draw: int | None = None, annotator: str | None = None) -> list[Label]:
        """The current labels, oldest first: of one draw, of one annotator, or all."""
        query = (
            "SELECT dataset, fingerprint, key, record, annotator, domain, labels.time, draw "
            "FROM labels JOIN items USING (draw, key) JOIN draws ON draws.id = draw "
            "WHERE (?1 IS NULL OR draw = ?1) AND (?2 IS NULL OR annotator = ?2) ORDER BY labels.id"
        )
        return [Label(*row) for row in self._file.rows(query, draw, annotator)]

    def adjudicate(self, by: str, draw: int, key: str, domain: str | None) -> None:
        """Decides finally on a key of a draw's dataset, in all its draws; None takes it back.

        The annotators' own labels stay as they are. The latest decision on a key counts. Errors
        as in `set`.
        """
        self.adjudicate_all(by, draw, {key: domain})

    def adjudicate_all(self, by: str, draw: int, domains: Mapping[str, str | None]) -> None:
        """Like `adjudicate` for many keys: all of them or, on any error, none."""
        self._check(by, domains)
        with self._file.transaction() as connection:
            self._known(connection, draw, domains)
            now = time.time()
            connection.executemany(
                "INSERT INTO decisions (adjudicator, draw, key, domain, time) "
                "VALUES (?, ?, ?, ?, ?)",
                [(by, draw, key, domain, now) for key, domain in domains.items()],
            )

    def adjudications(self, draw: int | None = None) -> list[Label]:
        """The decisions that hold, oldest first; `annotator` is who decided, `draw` within which.

        With `draw`, those on the keys of that draw, wherever they were decided.
        """
        query = (
            "SELECT dataset, fingerprint, key, record, adjudicator, domain, a.time, a.draw "
            "FROM adjudications AS a JOIN items USING (draw, key) JOIN draws ON draws.id = draw "
            "WHERE ?1 IS NULL OR (fingerprint = (SELECT fingerprint FROM draws WHERE id = ?1) "
            "AND key IN (SELECT key FROM items WHERE draw = ?1)) ORDER BY a.id"
        )
        return [Label(*row) for row in self._file.rows(query, draw)]

    def progress(self, draw: int, annotator: str) -> tuple[int, int]:
        """How many records of the draw this annotator has labelled, and how many it holds."""
        query = (
            "SELECT (SELECT COUNT(*) FROM labels WHERE draw = ?1 AND annotator = ?2), "
            "(SELECT COUNT(*) FROM items WHERE draw = ?1)"
        )
        return self._file.rows(query, draw, annotator)[0]

    def annotators(self) -> list[str]:
        """Names of all who ever labelled, sorted."""
        return [
            name for (name,) in self._file.rows("SELECT DISTINCT annotator FROM changes ORDER BY 1")
        ]

    def _check(self, name: str, domains: Mapping[str, str | None]) -> None:
        if not name or len(name) > _MAX_NAME or name != name.strip() or not name.isprintable():
            raise UserError(
                f"annotator: {name!r} is no name; use 1 to {_MAX_NAME} printable characters, "
                "without space at the ends"
            )
        for key, domain in domains.items():
            if domain is not None and domain not in schema.DOMAINS:
                raise UserError(
                    f"{key}: cannot be labelled {domain!r}; domains are {', '.join(schema.DOMAINS)}"
                )

    def _known(self, connection: sqlite3.Connection, draw: int, keys: Mapping[str, object]):
        """The keys, all of which must be in the draw."""
        if len(keys) == 1:
            query, rest = "SELECT key FROM items WHERE draw = ? AND key = ?", tuple(keys)
        else:
            query, rest = "SELECT key FROM items WHERE draw = ?", ()
        found = {key for (key,) in connection.execute(query, (draw, *rest))}
        unknown = [key for key in keys if key not in found]
        if unknown:
            raise UserError(
                f"{self.path}: draw {draw} holds no key {unknown[0]!r} ({len(unknown)} of "
                f"{len(keys)} keys are unknown); label keys of one of the draws "
                f"{self._draw_ids()}"
            )
        return list(keys)

    def _current(
        self, connection: sqlite3.Connection, annotator: str, draw: int, keys: Sequence[str]
    ) -> dict[str, str | None]:
        """The last domain that was set and not undone, where there is any."""
        query = (
            "SELECT domain FROM changes WHERE draw = ? AND annotator = ? AND key = ? "
            "AND NOT undone ORDER BY id DESC LIMIT 1"
        )
        rows = ((k, connection.execute(query, (draw, annotator, k)).fetchone()) for k in keys)
        return {key: row[0] for key, row in rows if row}

    def _draw_ids(self) -> list[int]:
        return [draw for (draw,) in self._file.rows("SELECT id FROM draws ORDER BY id")]
