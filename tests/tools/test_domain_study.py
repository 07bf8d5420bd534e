"""The study of domain classifiers: its cells, and what it makes of finished ones."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from clipdg_jax import errors
from clipdg_jax.domains import calibration, report, scores
from configs import classify
from tools import domain_study
from tools.domain_study import Cell

RUNS = pathlib.Path("runs/x")


def _fields(cell, extra=()):
    """What the command line of a cell sets, and the config that comes of it."""
    flags = [part for part in cell.run(extra).command(RUNS) if part.startswith("--config.")]
    pairs = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    config = classify.get_config("compare")
    flat = {}
    for field, value in pairs.items():
        section = config
        for name in field.split("."):
            section, own = section[name], section
        assert not isinstance(section, type(own)), field
        flat[field] = type(section)(value)
    config.update_from_flattened_dict(flat)
    return pairs, config


def _scored(seed, separation, n=1500):
    """Scores of a classifier that tells the domains apart so well."""
    rng = np.random.default_rng(seed)
    domain = rng.choice(3, n, p=[0.45, 0.35, 0.2]).astype(np.int32)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), domain] += separation
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    keys = tuple(map(str, range(n)))
    return scores.Scores(keys, domain, p[:, :2].astype(np.float32), np.ones(n, bool))


def _results(seed, separation, methods, target=0.95):
    """What a run leaves, of scores that were drawn at random."""
    compared = []
    for i, method in enumerate(methods):
        validation = _scored(1000 + seed, separation)
        made = calibration.calibrate(
            validation.probability,
            validation.domain,
            target=target,
            resamples=10,
            allow_unreached=True,
        )
        sets = {"validation": validation, "test/pool": _scored(100 * i + seed, separation)}
        compared.append(report.Compared(method, f"is {method}", made, sets))
    return {"job": "classify", **report.measure(compared, resamples=20)}


@pytest.fixture(scope="module")
def found():
    """All cells. The noisiest labels leave no threshold."""
    separation = {"seed0": 6, "noise0.1": 4, "noise0.2": 1, "labels250": 3.6, "labels500": 4.2}

    def methods(cell):
        if cell == Cell():
            return ("finetune", "gram", "ensemble")
        return ("finetune", "ensemble") if cell.seed else ("ensemble",)

    return {
        cell: _results(seed, separation.get(cell.name, 5), methods(cell))
        for seed, cell in enumerate(domain_study.cells(seeds=3))
    }


def test_cells_are_the_studys():
    made = domain_study.cells(seeds=5)
    names = [cell.name for cell in made]
    assert names == [
        *(f"seed{i}" for i in range(5)),
        *("noise0", "noise0.1", "noise0.2"),
        *("labels250", "labels500", "labels1000"),
    ]
    default = classify.get_config("compare")
    pairs, config = _fields(made[0])
    assert pairs == {"seed": "0"}
    assert config.compare == default.compare
    for cell in made[1:]:
        _, config = _fields(cell)
        assert config.compare == ("finetune,ensemble" if cell.seed else "ensemble")
        assert config.data.test_sets == "test/pool"
        assert config.seed == cell.seed
        simulate = default.labels.simulate
        expected = simulate.train_noise if cell.noise is None else cell.noise
        assert config.labels.simulate.train_noise == expected
        assert config.labels.simulate.train == (cell.labels or simulate.train)
        for same in ("validation", "test", "folds", "min_annotators"):
            assert config.labels[same] == default.labels[same]
    assert f"--workdir={RUNS / 'noise0.1'}" in Cell(noise=0.1).run([]).command(RUNS)


def test_settings_move_the_default_but_not_the_cells():
    extra = ["labels.simulate.train_noise=0.1", "labels.simulate.train=500", "data.threads=1"]
    names = [cell.name for cell in domain_study.cells(1, extra)]
    assert names == ["seed0", "noise0", "noise0.2", "labels250", "labels1000"]
    pairs, _ = _fields(Cell(labels=250), extra)
    assert pairs["labels.simulate.train"] == "250"
    assert pairs["data.threads"] == "1"
    pairs, _ = _fields(Cell(noise=0.2), extra)
    assert pairs["labels.simulate.train_noise"] == "0.2"
    with pytest.raises(errors.UserError, match=r"labels\.simulate\.train: is 'many'"):
        domain_study.cells(1, ["labels.simulate.train=many"])


def test_tables_tell_what_the_runs_measured(found, tmp_path):
    text = domain_study.summarise(found, tmp_path, [])
    assert (tmp_path / "study.md").read_text() == text
    saved = json.loads((tmp_path / "study.json").read_text())
    assert saved == {cell.name: results for cell, results in found.items()}

    lines = text.splitlines()
    assert sum(line.startswith(("| natural | gram", "| rendition | gram")) for line in lines) == 2
    for method in domain_study.METHODS:
        _check_seeds(found, lines[lines.index(f"### {method}") :], method)
    # The default is told among the rates and among the counts once.
    rows = [
        line.split("|")[1:3]
        for line in lines[
            lines.index(next(line for line in lines if line.startswith("| labels"))) + 2 :
        ]
        if line.startswith("|")
    ]
    told = [(int(count), float(rate)) for count, rate in rows]
    assert told == [
        *((2000, rate) for rate in (0, 5, 10, 20)),
        *((count, 5) for count in (250, 500, 1000)),
    ]
    # What takes nothing is told, with its reason.
    refused = [line for line in lines if line.startswith("- noise0.2, ensemble: ")]
    assert len(refused) == 2
    assert all("no threshold reaches precision 0.95" in line for line in refused)
    row = next(line for line in lines if line.startswith("| 2000 | 20 |"))
    assert row.startswith("| 2000 | 20 | - | 0.0 (")


def _check_seeds(found, lines, method):
    """The first table of seeds in `lines` tells what the runs measured of a method."""
    seeds = [Cell(seed) for seed in range(3)]
    columns = [(d, f) for d in ("natural", "rendition") for f in ("precision", "recall")]
    sets = [found[cell]["sets"]["test/pool"]["methods"][method] for cell in seeds]
    values = np.array([[100 * one[d][f]["value"] for d, f in columns] for one in sets])
    for name, expected in (("lowest", values.min(0)), ("mean", values.mean(0))):
        row = next(line for line in lines if line.startswith(f"| {name}"))
        assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(expected, abs=0.05)
    precision, recall = values[:, ::2].min(), values[:, 1::2].min()
    assert next(line for line in lines if line.startswith("Lowest")) == (
        f"Lowest of all seeds and deciders: true precision {precision:.1f} %, "
        f"recall {recall:.1f} %."
    )


def test_a_seed_without_a_threshold_is_counted():
    rows = {
        seed: domain_study.deciders(Cell(seed), _results(seed, separation, ("gram",)), "gram")
        for seed, separation in enumerate((6, 1))
    }
    told = domain_study.lowest(rows)
    assert told.endswith("recall 0.0 %; 2 of the 4 deciders take nothing.")
    taking = [one.precision.value for one in rows[0].values()]
    assert f"true precision {100 * min(taking):.1f} %" in told
    assert "| lowest |" in domain_study.seeds_table(rows)
    assert "undefined" in domain_study.lowest({1: rows[1]})


def test_a_cell_without_the_measure_is_named(found):
    with pytest.raises(errors.UserError, match="seed0: has no finetune on test/pool"):
        domain_study.deciders(Cell(), {"sets": {}}, "finetune")
    other = _results(0, 5, methods=("gram",))
    with pytest.raises(errors.UserError, match="noise0: has no finetune on test/pool"):
        domain_study.deciders(Cell(noise=0.0), other, "finetune")


def test_the_picture_has_both_domains_colours(found, tmp_path):
    domain_study.summarise(found, tmp_path, [])
    pixels = np.asarray(Image.open(tmp_path / "study.png").convert("RGB")).reshape(-1, 3)
    left, right = np.split(pixels.reshape(1050, 1500, 3), 2, axis=1)
    for half in (left, right):
        for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
            assert (half == np.array(colour)).all(axis=2).sum() > 300
