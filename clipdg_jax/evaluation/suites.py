"""Suites: named lists of test sets, each with its domain, classes and prompts.

A suite is a directory `<data_root>/<suite>` with a `suite.json`:

    {"name": "pacs", "templates": ["a photo of a {}.", ...],
     "test_sets": {"photo": {"dataset": "pacs/test_photo", "domain": "natural"}, ...}}

`dataset` is looked for beside `suite.json` first, then resolved like any dataset name; of a list of
names the first that is there is taken. `name` may be left out (the directory's then serves),
`templates` too (`prompts.SIMPLE`; "openai" means OpenAI's 80), and a test set may bring its own.
The classes are those of each dataset's manifest, in its numbering. A test set's `classnames` says
what they are called in prompts: "imagenet" where they are WordNet ids, several for a class that
several of ImageNet's are mapped to; "words" to read aircraft_carrier as aircraft carrier; by
default their own names. Suites of `catalogue` need no file.
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clipdg_jax.data import imagenet, resolve, schema
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import catalogue, prompts

CLASSNAMES = ("imagenet", "words")
_WORDNET = re.compile(r"\bn\d{8}\b")


@dataclasses.dataclass(frozen=True)
class TestSet:
    """One labelled dataset of a suite."""

    __test__ = False  # not a pytest class, whatever its name

    name: str
    source: resolve.Source
    domain: str
    templates: tuple[str, ...]
    classnames: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that the dataset's manifest lists; labels index into it."""
        return tuple(self.source.classes)

    @property
    def prompt_names(self) -> tuple[tuple[str, ...], ...]:
        """What each class is called in prompts; one with several names is found by any of them.

        Raises UserError for a WordNet id that is none of ImageNet-1k's.
        """
        return self.names_of(self.classes)

    def names_of(self, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """What classes, of another dataset too, are called in this test set's prompts."""
        return tuple(_prompt_names(name, self.classnames, self.name) for name in classes)


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
    if name in catalogue.SUITES and not os.path.isfile(path):
        spec, path = catalogue.SUITES[name], f"suite {name!r}"
    else:
        spec = _read(path, name, data_root)
    default = prompts.chosen(spec.get("templates"), f"{path}: templates") or prompts.SIMPLE
    test_sets, skipped = [], {}
    for test_set, fields in spec["test_sets"].items():
        where = f"{path}: test_sets.{test_set}"
        _check_fields(fields, where)
        try:
            source = _source(_places(fields["dataset"]), directory, data_root, where)
        except UserError as error:
            if not skip:
                raise
            logging.warning("skipped test set %s/%s: %s", name, test_set, error)
            skipped[test_set] = str(error)
            continue
        own = prompts.chosen(fields.get("templates"), f"{where}.templates") or default
        opened = TestSet(test_set, source, fields["domain"], own, fields.get("classnames"))
        _ = opened.prompt_names  # Whatever is wrong with them is said now.
        test_sets.append(opened)
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
    if not isinstance(fields, dict) or not _places(fields.get("dataset")):
        raise UserError(f'{where}: must be an object like {{"dataset": "...", "domain": "..."}}')
    unknown = sorted(set(fields) - {"dataset", "domain", "templates", "classnames"})
    if unknown:
        raise UserError(
            f"{where}: unknown field {unknown[0]!r}; dataset, domain, templates and classnames are"
        )
    if fields.get("classnames") not in (None, *CLASSNAMES):
        raise UserError(
            f"{where}.classnames: {fields['classnames']!r} is none of {', '.join(CLASSNAMES)}"
        )
    if fields.get("domain") not in schema.DOMAINS:
        raise UserError(
            f"{where}.domain: {fields.get('domain')!r} is none of {', '.join(schema.DOMAINS)}"
        )


def _places(dataset: Any) -> list[str]:
    """The names under which a dataset is looked for; none if the field is not of the right kind."""
    places = dataset if isinstance(dataset, list) else [dataset]
    return places if all(isinstance(place, str) for place in places) else []


def wordnet_ids(name: str) -> list[str]:
    """The WordNet ids in a class's name: of ImageNet's classes, or those it is mapped to."""
    return _WORDNET.findall(name)


def _prompt_names(name: str, rule: str | None, where: str) -> tuple[str, ...]:
    if rule is None:
        return (name,)
    if rule == "words":
        return (name.replace("_", " "),)
    known, found = imagenet.names(), wordnet_ids(name)
    for identity in found:
        if identity not in known:
            raise UserError(f"test set {where}: its class {identity} is none of ImageNet-1k's")
    return tuple(known[identity] for identity in found) or (name,)


def _source(places: Sequence[str], directory: str, data_root: str, where: str) -> resolve.Source:
    """The first of the places that is there; UserError if none is, or that one is not in order."""
    beside = [os.path.abspath(os.path.join(directory, place)) for place in places]
    chosen = next((path for path in beside if os.path.isdir(path)), None)
    if chosen is None or not resolve.is_there(chosen, data_root):
        there = [place for place in places if resolve.is_there(place, data_root)]
        if not there and len(places) > 1:
            raise UserError(
                f"{where}: is not there; looked for {', '.join(places)} below {data_root}. Put it "
                "or a link there, or leave it out with --config.missing=skip"
            )
        chosen = there[0] if there else chosen or places[0]
    try:
        source = resolve.resolve(chosen, data_root)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    dataset = chosen
    if not len(source):
        raise UserError(f"{where}: dataset {dataset!r} is empty; a test set needs images")
    if len(source.classes or ()) < 2:
        raise UserError(
            f"{where}: dataset {dataset!r} lists no classes; a test set needs two or more"
        )
    return source
