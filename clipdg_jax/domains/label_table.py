"""Labels as a table: read from a store, a Parquet or a CSV file, and brought to one per record."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int32, Int64

from clipdg_jax.data import files, resolve, schema, shards
from clipdg_jax.domains import labels
from clipdg_jax.errors import UserError

# A record among all datasets: the content it is from (its name where that is unknown), its key.
Identity = tuple[str, str]

_KIND = b"clipdg_labels"
_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("fingerprint", pa.string()),
        ("key", pa.string()),
        ("index", pa.int64()),
        ("annotator", pa.string()),
        ("domain", pa.string()),
        ("time", pa.float64()),
        ("order", pa.string()),
        ("seed", pa.int64()),
        ("population", pa.int64()),
        ("probability", pa.float64()),
        ("adjudicated", pa.bool_()),
    ],
    metadata={_KIND: b"1"},
)
# What a table that lacks the column says in it.
_DEFAULTS: Mapping[str, Any] = {
    "dataset": "",
    "fingerprint": "",
    "index": -1,
    "annotator": "",
    "time": 0.0,
    "order": "",
    "seed": -1,
    "population": -1,
    "probability": math.nan,
    "adjudicated": False,
}


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels and decisions, one a row, as pyarrow columns.

    Columns: dataset (its name), fingerprint (of its content; "" where unknown), key, index (-1
    where unknown), annotator, domain, time (seconds since 1970), order (one of `labels.ORDERS`, or
    "" where unknown), seed (-1 where unknown), population (records drawn from; -1 where unknown),
    probability (NaN where unknown), adjudicated (a final decision rather than an annotator's
    label).
    """

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> list[Any]:
        """One column as Python values."""
        return self.table.column(name).to_pylist()

    def identities(self) -> list[Identity]:
        """Which record each row is about."""
        columns = (self.column(name) for name in ("fingerprint", "dataset", "key"))
        return [(f or d, k) for f, d, k in zip(*columns, strict=True)]

    def votes(self) -> dict[Identity, dict[str, int]]:
        """Per record, the row of each annotator's latest label; decisions do not count."""
        return self._latest(adjudicated=False)

    def decisions(self) -> dict[Identity, int]:
        """Per decided record, the row of the latest decision."""
        latest = self._latest(adjudicated=True)
        times = self.column("time")
        return {
            identity: max(rows.values(), key=lambda row: (times[row], row))
            for identity, rows in latest.items()
        }

    def _latest(self, adjudicated: bool) -> dict[Identity, dict[str, int]]:
        times, who, final = (self.column(n) for n in ("time", "annotator", "adjudicated"))
        identities = self.identities()
        found: dict[Identity, dict[str, int]] = {}
        for row in sorted(range(len(self)), key=times.__getitem__):  # stable: later rows win ties
            if final[row] == adjudicated:
                found.setdefault(identities[row], {})[who[row]] = row
        return found


def from_store(store: labels.Store) -> LabelTable:
    """The store's current labels, then its decisions, each with the draw that it came from."""
    draws = {draw.id: draw for draw in store.draws()}
    probabilities = {
        (number, item.key): item.probability for number in draws for item in store.items(number)
    }
    said = [(label, False) for label in store.labels()]
    said += [(label, True) for label in store.adjudications()]
    columns: dict[str, list[Any]] = {
        name: [getattr(label, name) for label, _ in said]
        for name in ("dataset", "fingerprint", "key", "index", "annotator", "domain", "time")
    }
    for name in ("order", "seed", "population"):
        columns[name] = [getattr(draws[label.draw], name) for label, _ in said]
    columns["probability"] = [probabilities[label.draw, label.key] for label, _ in said]
    columns["adjudicated"] = [final for _, final in said]
    return LabelTable(pa.table(columns, schema=_SCHEMA))


def export(store: labels.Store, path: str | os.PathLike[str]) -> LabelTable:
    """Writes the store's labels and decisions to a Parquet file, whole or not at all.

    An earlier export is replaced. Raises UserError where another file is in the way, and where
    the disk is full or refuses.
    """
    path = Path(path)
    if path.exists() and not _is_export(path):
        raise UserError(f"{path}: is not an export of labels; move it or choose another name")
    table = from_store(store)
    with files.whole(path) as unfinished:
        pq.write_table(table.table, unfinished, compression="zstd")
    return table


def _is_export(path: Path) -> bool:
    try:
        return _KIND in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read(path: str | os.PathLike[str]) -> LabelTable:
    """Labels from a label store, or from a Parquet or CSV file; its content tells which.

    A plain table needs the columns `key` and `domain` and may have any others of `LabelTable`.
    Without `order` its labels can train but not calibrate; give them `random` there if the records
    were drawn at random.

    Raises:
        UserError: there is no such file, it is damaged or something else; a column is missing; a
            row has no key, or a domain or order that does not exist; one annotator says two
            things of one record.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make labels with `python -m tools.label`"
        ) from error
    if head.startswith(b"SQLite format 3"):
        with labels.Store(path) as store:
            return from_store(store)
    try:
        if head.startswith(b"PAR1"):
            raw = pq.read_table(path)
        else:
            options = pa.csv.ConvertOptions(
                column_types={field.name: field.type for field in _SCHEMA}
            )
            raw = pa.csv.read_csv(path, convert_options=options)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"{path}: is no label store and cannot be read as Parquet or CSV ({what}); give one "
            "of these"
        ) from error
    return _complete(raw, path)


def _complete(raw: pa.Table, path: Path) -> LabelTable:
    """The table with all columns, checked."""
    columns = []
    for field in _SCHEMA:
        if field.name in raw.column_names:
            column = raw.column(field.name)
            try:
                column = column.cast(field.type)
            except pa.ArrowException as error:
                raise UserError(
                    f"{path}: column {field.name} is {column.type}; it should be {field.type}"
                ) from error
            columns.append(column.fill_null(_DEFAULTS.get(field.name, "")))
        elif field.name in _DEFAULTS:
            columns.append(pa.array([_DEFAULTS[field.name]] * raw.num_rows, field.type))
        else:
            raise UserError(
                f"{path}: has no column {field.name!r}; labels need the columns key and domain"
            )
    table = LabelTable(pa.table(columns, schema=_SCHEMA))
    _check(table, path)
    return table


def _check(table: LabelTable, path: Path) -> None:
    said: dict[tuple, str] = {}
    names = ("key", "domain", "order", "annotator", "time", "adjudicated")
    rows = zip(table.identities(), *(table.column(name) for name in names), strict=True)
    for number, (identity, key, domain, order, annotator, time, final) in enumerate(rows, 1):
        if not key:
            raise UserError(f"{path}: row {number} has no key; give the record's key there")
        if domain not in schema.DOMAINS:
            raise UserError(
                f"{path}: row {number} ({key}) has domain {domain!r}; domains are "
                f"{', '.join(schema.DOMAINS)}"
            )
        if order and order not in labels.ORDERS:
            raise UserError(
                f"{path}: row {number} ({key}) has order {order!r}; orders are "
                f"{', '.join(labels.ORDERS)}"
            )
        before = said.setdefault((identity, annotator, time, final), domain)
        if before != domain:
            raise UserError(
                f"{path}: row {number} says that {key} is {domain}, an earlier row that it is "
                f"{before}; name their annotators in a column `annotator`, or keep one of them"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Consensus:
    """One domain per record, ordered by dataset and key, whatever the order of the labels.

    Attributes:
        key, dataset, fingerprint, index: of the record, as in `LabelTable`.
        domain: index into `schema.DOMAINS`.
        annotators: how many labelled it.
        random_annotators: how many of them labelled it in a draw of a random order.
        random: labelled or decided in a draw of a random order, so that it may calibrate.
        adjudicated: whether a decision, not a majority, says so.
        probability: of being drawn, the largest of its random draws; NaN where unknown.
        ties: records left out because no domain has a strict majority and nobody decided.
        few: records left out because fewer than `min_annotators` labelled them.
    """

    key: tuple[str, ...]
    dataset: tuple[str, ...]
    fingerprint: tuple[str, ...]
    index: Int64[np.ndarray, " n"]
    domain: Int32[np.ndarray, " n"]
    annotators: Int32[np.ndarray, " n"]
    random_annotators: Int32[np.ndarray, " n"]
    random: Bool[np.ndarray, " n"]
    adjudicated: Bool[np.ndarray, " n"]
    probability: Float64[np.ndarray, " n"]
    ties: int
    few: int

    def __len__(self) -> int:
        return len(self.key)

    def subset(self, rows: Int64[np.ndarray, " m"]) -> Consensus:
        """The records of these rows; the counts of those left out stay."""
        chosen: dict[str, Any] = {
            field.name: values[rows]
            if isinstance(values := getattr(self, field.name), np.ndarray)
            else tuple(values[i] for i in rows.tolist())
            for field in dataclasses.fields(self)
            if field.name not in ("ties", "few")
        }
        return dataclasses.replace(self, **chosen)


def consensus(table: LabelTable, min_annotators: int = 1) -> Consensus:
    """What the annotators agree on: a decision where there is one, else a strict majority.

    Each annotator has one vote per record, the latest. Records that fewer than `min_annotators`
    labelled are left out unless decided, and so are ties; both are counted.
    """
    votes, decisions = table.votes(), table.decisions()
    columns = {name: table.column(name) for name in _SCHEMA.names}
    order, probability = columns["order"], columns["probability"]
    # A vote given again outside a random draw does not undo that the record was drawn at random.
    drawn: dict[Identity, dict[str, float]] = {}
    for row, identity in enumerate(table.identities()):
        if order[row] in labels.RANDOM_ORDERS:
            who = "" if columns["adjudicated"][row] else columns["annotator"][row]
            best = drawn.setdefault(identity, {})
            best[who] = np.fmax(best.get(who, math.nan), probability[row])
    found: list[tuple] = []
    ties = few = 0
    for identity in sorted(votes.keys() | decisions.keys()):
        own = votes.get(identity, {})
        if identity in decisions:
            row = decisions[identity]
        elif len(own) < min_annotators:
            few += 1
            continue
        else:
            says = [columns["domain"][row] for row in own.values()]
            winner = max(schema.DOMAINS, key=says.count)
            if 2 * says.count(winner) <= len(says):
                ties += 1
                continue
            row = next(row for row in own.values() if columns["domain"][row] == winner)
        chances = drawn.get(identity, {})
        among = sum(annotator in chances for annotator in own)
        chance = float(np.fmax.reduce([math.nan, *chances.values()]))
        found.append((row, len(own), among, bool(chances), identity in decisions, chance))

    def text(name: str) -> tuple[str, ...]:
        return tuple(columns[name][row] for row, *_ in found)

    def numbers(position: int, dtype: type) -> np.ndarray:
        return np.array([values[position] for values in found], dtype)

    domains = text("domain")
    return Consensus(
        key=text("key"),
        dataset=text("dataset"),
        fingerprint=text("fingerprint"),
        index=np.array([columns["index"][row] for row, *_ in found], np.int64),
        domain=np.array([schema.DOMAINS.index(name) for name in domains], np.int32),
        annotators=numbers(1, np.int32),
        random_annotators=numbers(2, np.int32),
        random=numbers(3, np.bool_),
        adjudicated=numbers(4, np.bool_),
        probability=numbers(5, np.float64),
        ties=ties,
        few=few,
    )


def locate(source: resolve.Source, keys: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The index of each key in a dataset, found by reading its records until all are found.

    Raises UserError where keys are unknown: it names the first and counts them.
    """
    wanted = set(keys)
    found: dict[str, int] = {}
    damaged = 0
    for index in range(len(source)):
        if len(found) == len(wanted):
            break
        try:
            key = source.record(index).key
        except shards.RecordError:
            damaged += 1
            continue
        if key in wanted:
            found.setdefault(key, index)
    unknown = [key for key in dict.fromkeys(keys) if key not in found]
    if unknown:
        also = f" ({damaged} of its records are damaged)" if damaged else ""
        raise UserError(
            f"{source.name}: has no record {unknown[0]!r} ({len(unknown)} of {len(wanted)} "
            f"labelled keys are unknown){also}; name the dataset that was labelled"
        )
    return np.array([found[key] for key in keys], np.int64)
