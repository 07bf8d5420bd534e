"""From labels to examples: which records they are about, and which train, calibrate and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from clipdg_jax.data import files, resolve
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains import label_table, splits
from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Examples and what they are for.

    Attributes:
      train, validation, test: disjoint.
      provenance: JSON-able: where the labels come from, how many were left out and why.
    """

    train: examples_lib.Examples
    validation: examples_lib.Examples
    test: examples_lib.Examples
    provenance: Mapping[str, Any]

    def parts(self) -> dict[str, examples_lib.Examples]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def read(
    path: str, sources: Sequence[resolve.Source], config: ml_collections.ConfigDict, seed: int
) -> Labelled:
    """Labels of a store or file, one domain a record, split by their keys.

    Args:
      path: what `label_table.read` takes.
      sources: the datasets that were labelled; labels of others are counted and left out.
      config: the section `labels`: `validation`, `test`, `min_annotators`.
      seed: of the split.

    Raises:
      UserError: a key is unknown, or the labels do not suffice for the split.
    """
    agreed = label_table.consensus(label_table.read(path))
    examples, rows = _located(agreed, sources, path)
    train, validation, test = (
        examples.subset(np.flatnonzero(np.isin(rows, part)))
        for part in splits.split(
            agreed,
            validation=config.validation,
            test=config.test,
            min_annotators=config.min_annotators,
            seed=seed,
        )
    )
    return Labelled(
        train,
        validation,
        test,
        {
            "labels": path,
            "records": len(examples),
            "of_other_datasets": len(agreed) - len(examples),
            "ties": agreed.ties,
            "adjudicated": int(agreed.adjudicated.sum()),
            "from_random_draws": int(agreed.random.sum()),
            "min_annotators": config.min_annotators,
            "consensus": files.digest(
                [agreed.fingerprint, agreed.key, agreed.domain.tolist()],
            ),
        },
    )


def of_records(sources: Sequence[resolve.Source]) -> examples_lib.Examples:
    """Every record of the datasets with the domain that it names itself.

    Raises UserError where one names none.
    """
    parts = [examples_lib.everything(source) for source in sources]
    for source, part in zip(sources, parts, strict=True):
        unknown = np.flatnonzero(part.domain < 0)
        if len(unknown):
            raise UserError(
                f"{source.name}: {part.keys[unknown[0]]} and {len(unknown) - 1} more records name "
                "no domain; import it with --domains, or set config.labels.path"
            )
    return examples_lib.join(parts)


def check(parts: Mapping[str, examples_lib.Examples]) -> None:
    """Raises UserError where natural or rendition has no label in one of the parts."""
    for name, part in parts.items():
        counts = part.counts()
        for domain in inputs_lib.DOMAINS[:2]:
            if not counts[domain]:
                told = ", ".join(f"{count} {other}" for other, count in counts.items())
                raise UserError(
                    f"labels: none of the {len(part)} for {name} says {domain} ({told}); label "
                    "more, of both natural and rendition"
                )


def _located(
    agreed: label_table.Consensus, sources: Sequence[resolve.Source], path: str
) -> tuple[examples_lib.Examples, np.ndarray]:
    """The records that labels are about, and their rows in the consensus."""
    parts, taken = [], []
    for source in sources:
        rows = np.flatnonzero([_is_about(agreed, i, source, sources) for i in range(len(agreed))])
        if not len(rows):
            continue
        index = agreed.index[rows]
        known = np.array([agreed.fingerprint[i] == source.fingerprint for i in rows]) & (index >= 0)
        if not known.all():
            index = label_table.locate(source, [agreed.key[i] for i in rows])
        parts.append(
            examples_lib.Examples(
                (source,),
                np.zeros(len(rows), np.int32),
                index,
                agreed.domain[rows],
                tuple(agreed.key[i] for i in rows),
            )
        )
        taken.append(rows)
    if not parts:
        names = ", ".join(source.name for source in sources)
        raise UserError(
            f"{path}: none of its {len(agreed)} labels is of {names}; name the datasets that were "
            "labelled in config.data.datasets"
        )
    return examples_lib.join(parts), np.concatenate(taken)


def _is_about(
    agreed: label_table.Consensus,
    row: int,
    source: resolve.Source,
    sources: Sequence[resolve.Source],
) -> bool:
    """By the dataset's content where the label knows it, else by its name, else the only one."""
    if agreed.fingerprint[row]:
        return agreed.fingerprint[row] == source.fingerprint
    if agreed.dataset[row]:
        return agreed.dataset[row] == source.name
    return len(sources) == 1
