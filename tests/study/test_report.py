"""The report of simulated runs, against figures computed from these by other means."""

import csv
import json
import xml.etree.ElementTree

import ml_collections
import numpy as np
import pytest
import scipy.stats

from clipdg_jax import errors
from clipdg_jax.evaluation import paired
from clipdg_jax.jobs import report as job
from clipdg_jax.study import analysis, groups, runs
from tests.domains.curation.test_report import check_page
from tests.jobs import small_runs
from tests.study import simulated


def config(sweep, **fields) -> ml_collections.ConfigDict:
    made = small_runs.load_config("report").get_config("demo")
    made.runs = str(sweep)
    made.resamples = 300
    made.composition.pool = simulated.COMPOSITION["pool"]
    made.update_from_flattened_dict(fields)
    return made


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return simulated.write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def made(sweep, tmp_path_factory):
    """The directory of a report, which names a pair of runs."""
    directory = tmp_path_factory.mktemp("report")
    pair = "mix-natural=2k,rendition=0k-seed0:mix-pool=2k-seed1"
    job.run(config(sweep, pairs=pair), directory)
    return directory


@pytest.fixture(scope="module")
def results(made):
    return json.loads((made / "results.json").read_text())


def top1(sweep, mix: str, test_set: str) -> list[float]:
    """Of each seed, as its run tells."""
    return [
        json.loads((sweep / f"mix-{mix}-seed{s}" / "results.json").read_text())["zero_shot"][
            "demo"
        ][test_set]["top1"]
        for s in range(3)
    ]


def test_groups_have_means_over_seeds_and_test_sets(sweep, results):
    group = next(g for g in results["groups"] if g["label"] == "natural=1.5k,rendition=0.5k")
    sketch, clipart = (top1(sweep, group["label"], name) for name in ("sketch", "clipart"))
    assert group["rendition"]["value"] == pytest.approx(np.mean([sketch, clipart]))
    assert group["test_sets"]["demo/sketch"] == pytest.approx(
        {"top1": np.mean(sketch), "standard_error": scipy.stats.sem(sketch)}
    )
    assert group["counts"] == {"natural": 1500, "rendition": 500}
    assert group["seeds"] == [0, 1, 2]
    for measure in ("natural", "rendition", "mean"):
        assert group[measure]["low"] < group[measure]["value"] < group[measure]["high"]


def test_relative_accuracy_is_corrected_and_of_as_many_records(sweep, results):
    chance = 1 / len(simulated.CLASSES)

    def corrected(mix):
        return np.mean([top1(sweep, mix, name) for name in ("sketch", "clipart")]) - chance

    ours = results["relative"]["natural=2k"]
    assert ours["reference"] == "pool=2k"
    expected = corrected("natural=2k,rendition=0k") / corrected("pool=2k")
    assert ours["rendition"]["value"] == pytest.approx(expected)
    assert results["relative"]["natural=0.5k"]["reference"] == "pool=0.5k"


def test_the_mixing_curve_has_the_best_mean_of_both_domains(results):
    (curve,) = results["curves"]
    assert curve["records"] == 2000
    assert [p["natural_share"] for p in curve["points"]] == [0, 0.125, 0.25, 0.5, 0.75, 0.875, 1]
    means = [(p["natural"]["value"] + p["rendition"]["value"]) / 2 for p in curve["points"]]
    assert [p["mean"]["value"] for p in curve["points"]] == pytest.approx(means)
    assert curve["best_share"] == curve["points"][int(np.argmax(means))]["natural_share"]
    assert curve["best_low"] <= curve["best_share"] <= curve["best_high"]
    # Where the simulated law has its best.
    shares = np.array([p["natural_share"] for p in curve["points"]])
    truth = [
        sum(simulated.accuracy(2000 * s, 2000 * (1 - s), d) for d in groups.DOMAINS) for s in shares
    ]
    assert curve["best_low"] <= shares[int(np.argmax(truth))] <= curve["best_high"]
    assert sum(p["chosen"] for p in curve["points"]) == pytest.approx(1)


def test_natural_alone_lies_below_the_line_of_the_random_controls(sweep, results):
    found = results["robustness"]
    means = {
        g["label"]: (g["natural"]["value"], g["rendition"]["value"]) for g in results["groups"]
    }
    pools = [label for label in means if label.startswith("pool")]
    assert [b["label"] for b in found["baselines"]] == pools
    x, y = (np.log([means[p][d] / (1 - means[p][d]) for p in pools]) for d in (0, 1))
    theirs = scipy.stats.linregress(x, y)
    assert found["line"]["slope"] == pytest.approx(theirs.slope)
    natural, rendition = means["natural=2k"]
    logit = theirs.intercept + theirs.slope * np.log(natural / (1 - natural))
    ours = found["groups"]["natural=2k"]
    assert ours["effective"] == pytest.approx(rendition - 1 / (1 + np.exp(-logit)))
    assert ours["high"] < 0 < found["groups"]["rendition=2k"]["low"]
    assert found["groups"]["pool=1k"]["low"] < 0 < found["groups"]["pool=1k"]["high"]


def test_the_law_places_what_it_was_not_fitted_to(results):
    predictions = results["law"]["predictions"]
    held_out = [p for p in predictions if p["held_out"]]
    pools = [p for p in predictions if not p["held_out"]]
    assert {p["label"] for p in pools} == {"pool=2k", "pool=1k", "pool=0.5k", "pool=0.25k"}
    assert len(held_out) == 2 * 9
    # Of 18 intervals at 95 %, 14 or more hold what they predict in 99 of 100 studies.
    assert sum(p["inside"] for p in held_out) >= 14
    for domain, (_, b, _) in simulated.TRUTH.items():
        fitted = results["law"]["domains"][domain]
        assert fitted["b"] == pytest.approx(b, abs=0.25)
        assert fitted["k_low"] < fitted["k"] < fitted["k_high"]


def test_differences_are_against_the_best_mix(results):
    best = results["curves"][0]["best"]
    assert results["best"] == best
    assert best not in results["differences"]
    means = {g["label"]: g for g in results["groups"]}
    told = results["differences"]["natural=2k"]["rendition"]
    expected = means["natural=2k"]["rendition"]["value"] - means[best]["rendition"]["value"]
    assert told["value"] == pytest.approx(expected)
    assert told["low"] < told["value"] < told["high"] < 0
    assert results["paired_images"]


def test_each_chart_is_a_file_too(sweep, made, tmp_path):
    names = ["law", "loss", "mixing-2000", "natural", "rendition", "robustness"]
    assert sorted(path.stem for path in made.glob("charts/*.svg")) == names
    for path in made.glob("charts/*.svg"):
        assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")
    # Those of an earlier report do not stay.
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "mixing-7.svg").write_text("old")
    job.run(config(sweep), tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("charts/*.svg")) == names


def test_the_page_needs_nothing_but_itself(sweep, made):
    text = (made / "report.html").read_text()
    assert len(check_page(text)) == 6
    for heading in ("The mixing curve, 2,000 records", "Effective robustness", "A law of accuracy"):
        assert f"<h2>{heading}</h2>" in text
    assert "Left out" not in text
    first, second = (
        sweep / name / "predictions-1000.parquet"
        for name in ("mix-natural=2k,rendition=0k-seed0", "mix-pool=2k-seed1")
    )
    told = next(c for c in paired.compare(first, second) if c.test_set == "demo/sketch")
    assert f"{100 * told.difference:+.1f} ({100 * told.low:+.1f} to" in text
    markdown = (made / "report.md").read_text()
    assert "## Pairs of runs" in markdown
    assert "data:image" not in markdown


def test_tables_for_others_to_read(sweep, made, results):
    with (made / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39
    row = next(r for r in rows if r["run"] == "mix-pool=1k-seed2")
    assert float(row["demo/clipart"]) == top1(sweep, "pool=1k", "clipart")[2]
    with (made / "groups.csv").open() as file:
        by_label = {r["label"]: r for r in csv.DictReader(file)}
    assert float(by_label["pool=2k"]["natural_records"]) == 1200
    effective = results["robustness"]["groups"]["pool=2k"]["effective"]
    assert float(by_label["pool=2k"]["effective_robustness"]) == effective
    with (made / "law.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results["law"]["predictions"])


def test_what_is_missing_is_said_and_the_rest_is_reported(tmp_path, capsys):
    mixes = ("natural=2k,rendition=0k", "natural=1k,rendition=1k", "natural=0k,rendition=2k")
    sweep = simulated.write_sweep(
        tmp_path / "sweep", seeds=(0,), mixes=mixes, with_predictions=False
    )
    unfinished = simulated.write_run(tmp_path, "pool=1k", 0)
    (unfinished / "results.json").unlink()
    job.run(config(f"{sweep},{unfinished}"), tmp_path / "report")
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert list(found["left_out"]) == [str(unfinished)]
    assert "0 mixes match config.baselines='pool=*': 0 points" in found["robustness"]["refused"]
    assert "3 mixes are too few for the law" in found["law"]["refused"]
    assert not found["paired_images"]
    assert len(found["curves"]) == 1
    text = (tmp_path / "report" / "report.html").read_text()
    assert f"<li>{unfinished}: is not finished" in text
    assert "Left out: 0 mixes match" in text
    assert f"left out: {unfinished}: is not finished" in capsys.readouterr().out


def test_other_models_are_baselines_too(tmp_path, sweep):
    rows = [("model", "set", "accuracy")]
    for model, natural in (("a", 0.3), ("b", 0.5), ("c", 0.7)):
        rows += [(model, "natural", natural), (model, "rendition", natural / 2)]
    path = tmp_path / "others.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    collected = runs.collect([str(sweep)])
    options = groups.Options(simulated.COMPOSITION, csv=str(path), resamples=10)
    study = groups.make(collected.runs, collected.suite, options)
    found = analysis.effective_robustness(study, options)
    assert [b["label"] for b in found["baselines"]] == ["a", "b", "c"]
    assert found["line"]["n"] == 3


def test_a_file_of_other_models_that_is_not_in_order_is_one_line(tmp_path):
    path = tmp_path / "others.csv"
    path.write_text("model,set,accuracy\na,natural,0.5\n")
    with pytest.raises(errors.UserError, match="a has no accuracy for rendition"):
        analysis.read_baselines(path)
    path.write_text("model,set,accuracy\na,natural,50\n")
    with pytest.raises(errors.UserError, match=r"accuracy '50'.*it needs columns"):
        analysis.read_baselines(path)


def test_a_pair_that_is_not_there_is_one_line(sweep, tmp_path):
    with pytest.raises(errors.UserError, match=r"config.pairs: 'a:b': a: is none of"):
        job.run(config(sweep, pairs="a:b"), tmp_path)


@pytest.mark.parametrize(
    ("mix", "label"),
    [
        ("natural=32k,rendition=0k", "natural=32k"),
        ("natural=0,rendition=1", "rendition=1"),
        ("natural=1_000,rendition=.5k", "natural=1_000,rendition=.5k"),
    ],
)
def test_labels_leave_out_what_a_mix_has_none_of(mix, label):
    assert groups.label_of(mix) == label
