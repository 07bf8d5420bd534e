"""Suites: named lists of test sets, each with its domain, classes and prompts.

A suite is a directory `<data_root>/<suite>` with a `suite.json`:

    {"name": "pacs", "templates": ["a photo of a {}.", ...],
     "test_sets": {"photo": {"dataset": "pacs/test_photo", "domain": "natural"}, ...}}

`dataset` is looked for beside `suite.json` first, then resolved like any dataset name. `name` may
be left out (the directory's then serves), `templates` too (`prompts.SIMPLE`), and a test set may
bring its own. The classes are those of each dataset's manifest, in its numbering.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipdg_jax.data import resolve, schema
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import prompts


@dataclasses.dataclass(frozen=True)
class TestSet:
    """One labelled dataset of a suite."""

    __test__ = False  # not a pytest class, whatever its name

    name: str
    source: resolve.Source
    domain: str
    templates: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that the dataset's manifest lists; labels index into it."""
        return tuple(self.source.classes)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named list of test sets; `skipped` names those left out, with the reason."""

    name: str
    test_sets: tuple[TestSet, ...]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load(names: Sequence[str], data_root: str, missing: str = "error") -> list[Suite]:
    """Opens suites by name (a directory under `data_root`, or a path).

    Args:
      names: suite names, each at most once.
      data_root: where suites and datasets live.
      missing: "error", or "skip" to leave out test sets whose dataset cannot be opened; each is
        logged and named in `Suite.skipped`. A suite without any test set left is an error.

    Raises UserError naming the suite, test set or field that is missing or wrong.
    """
    if missing not in ("error", "skip"):
        raise UserError(f"eval.missing: {missing!r} is unknown; 'error' or 'skip'")
    suites = [_load(name, data_root, missing == "skip") for name in names]
    seen = [suite.name for suite in suites]
    for name in seen:
        if seen.count(name) > 1:
            raise UserError(f"eval.suites: {name!r} occurs twice; name each suite once")
    return suites


def _load(name: str, data_root: str, skip: bool) -> Suite:
    directory = os.path.join(data_root, name)
    path = os.path.join(directory, "suite.json")
    spec = _read(path, name, data_root)
    templates = spec.get("templates")
    default: tuple[str, ...] = prompts.SIMPLE
    if templates is not None:
        default = prompts.check(templates, f"{path}: templates")
    test_sets, skipped = [], {}
    for test_set, fields in spec["test_sets"].items():
        where = f"{path}: test_sets.{test_set}"
        _check_fields(fields, where)
        try:
            source = _source(fields["dataset"], directory, data_root, where)
        except UserError as error:
            if not skip:
                raise
            logging.warning("skipped test set %s/%s: %s", name, test_set, error)
            skipped[test_set] = str(error)
            continue
        own = fields.get("templates")
        if own is not None:
            own = prompts.check(own, f"{where}.templates")
        test_sets.append(TestSet(test_set, source, fields["domain"], own or default))
    if not test_sets:
        raise UserError(
            f"{path}: none of its test sets could be opened; {next(iter(skipped.values()))}"
        )
    title = spec.get("name") or os.path.basename(os.path.normpath(directory))
    return Suite(title, tuple(test_sets), skipped)


def _read(path: str, name: str, data_root: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
    except FileNotFoundError:
        raise UserError(
            f"suite {name!r}: {path} does not exist; eval.suites names directories under "
            f"{data_root} that hold a suite.json"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it must be a JSON object") from None
    if not isinstance(spec, dict):
        raise UserError(f"{path}: must be a JSON object with 'test_sets'")
    unknown = sorted(set(spec) - {"name", "templates", "test_sets"})
    if unknown:
        raise UserError(f"{path}: unknown field {unknown[0]!r}; it has name, templates, test_sets")
    if not isinstance(spec.get("test_sets"), dict) or not spec["test_sets"]:
        raise UserError(f"{path}: 'test_sets' must be an object with at least one test set")
    return spec


def _check_fields(fields: Any, where: str) -> None:
    if not isinstance(fields, dict) or not isinstance(fields.get("dataset"), str):
        raise UserError(f'{where}: must be an object like {{"dataset": "...", "domain": "..."}}')
    unknown = sorted(set(fields) - {"dataset", "domain", "templates"})
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}; dataset, domain and templates are")
    if fields.get("domain") not in schema.DOMAINS:
        raise UserError(
            f"{where}.domain: {fields.get('domain')!r} is none of {', '.join(schema.DOMAINS)}"
        )


def _source(dataset: str, directory: str, data_root: str, where: str) -> resolve.Source:
    beside = os.path.abspath(os.path.join(directory, dataset))
    try:
        source = resolve.resolve(beside if os.path.isdir(beside) else dataset, data_root)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not len(source):
        raise UserError(f"{where}: dataset {dataset!r} is empty; a test set needs images")
    if len(source.classes or ()) < 2:
        raise UserError(
            f"{where}: dataset {dataset!r} lists no classes; a test set needs two or more"
        )
    return source
