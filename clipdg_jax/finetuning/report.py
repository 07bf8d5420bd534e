"""What a comparison found: `results.json`, tables (terminal, CSV, Markdown), and the verdict."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipdg_jax.data import files
from clipdg_jax.evaluation import stats, tables
from clipdg_jax.finetuning import choosing, comparison, measuring, methods

REFERENCE, PLAIN = "zero_shot", "full"
# What a method is not asked to show: the reference, what nothing protects, and what trains no
# feature.
NOT_PROTECTING = (REFERENCE, PLAIN, "linear_probe")

# What counts as protected: this much below zero-shot at most out of distribution, and this share of
# the gain of full fine-tuning at least in distribution.
OOD_MARGIN, ID_SHARE = 0.02, 0.5
# Of a sweep's point, beside its coefficients.
_MEASURED = ("protection", "validation", "id", "ood")


def gather(
    runs: Mapping[str, Mapping[int, comparison.Result]],
    inside: Sequence[str],
    outside: Sequence[str],
    also: Mapping[str, float],
) -> dict[str, Any]:
    """`results.json` without its origin: accuracies as fractions, means over the seeds.

    Args:
      runs: method -> seed -> what was found.
      inside, outside: names of the test sets.
      also: method -> the alpha that is told of besides the chosen one, as `<method>@<alpha>`.
    """
    found: dict[str, Any] = {}
    for name, seeds in runs.items():
        best = {seed: result.best for seed, result in seeds.items()}
        found[name] = _method(name, best, inside, outside) | {
            "sweep": _sweep(seeds, inside, outside)
        }
        if name in also:
            at = {
                seed: _at(result, also[name], result.best.point) for seed, result in seeds.items()
            }
            found[f"{name}@{also[name]:g}"] = _method(name, at, inside, outside)
    return {
        "job": "finetune",
        "methods": found,
        "inside": list(inside),
        "outside": list(outside),
        "rule": choosing.RULE,
        "verdict": verdict(found),
    }


def _at(
    result: comparison.Result, alpha: float, point: Mapping[str, float]
) -> comparison.Candidate:
    return next(c for c in result.candidates if c.alpha == alpha and c.point == point)


def _method(
    name: str,
    best: Mapping[int, comparison.Candidate],
    inside: Sequence[str],
    outside: Sequence[str],
) -> dict[str, Any]:
    seeds = [_seed(seed, candidate, inside, outside) for seed, candidate in best.items()]
    told: dict[str, Any] = {"about": " + ".join(methods.get(n).about for n in name.split("+"))}
    for key, names in (("id", inside), ("ood", outside)):
        mean, _ = stats.mean_and_standard_error([seed[key] for seed in seeds])
        images = float(
            np.mean([measuring.standard_error(c.measured, names) for c in best.values()])
        )
        between = stats.mean_and_standard_error([seed[key] for seed in seeds])[1]
        error = math.hypot(images, 0.0 if math.isnan(between) else between)
        told |= {
            key: mean,
            f"{key}_standard_error": error,
            f"{key}_interval": [mean - 1.96 * error, mean + 1.96 * error],
        }
    told["test_sets"] = {
        test_set: float(np.mean([seed["test_sets"][test_set]["top1"] for seed in seeds]))
        for test_set in (*inside, *outside)
    }
    told["chosen"] = seeds[0]["chosen"]
    told["seeds"] = seeds
    return told


def _seed(
    seed: int,
    candidate: comparison.Candidate,
    inside: Sequence[str],
    outside: Sequence[str],
) -> dict[str, Any]:
    measured = candidate.measured
    test_sets = {
        name: {
            **measured["test_sets"][name],
            "interval": list(
                stats.wilson_interval(
                    round(measured["test_sets"][name]["top1"] * measured["test_sets"][name]["n"]),
                    measured["test_sets"][name]["n"],
                )
            ),
        }
        for name in (*inside, *outside)
    }
    features = {
        f"{measure}_{where}": float(np.mean([test_sets[name][measure] for name in names]))
        for measure in ("cosine", "cka")
        for where, names in (("id", inside), ("ood", outside))
    }
    return {
        "seed": seed,
        "id": measuring.mean_top1(measured, inside),
        "ood": measuring.mean_top1(measured, outside),
        "chosen": {
            **candidate.point,
            **({"alpha": candidate.alpha} if candidate.alpha != 1.0 else {}),
            "validation": candidate.validation,
        },
        "test_sets": test_sets,
        "features": features,
        "distance": measured["distance"],
        "took": dict(candidate.took),
    }


def _sweep(
    seeds: Mapping[int, comparison.Result], inside: Sequence[str], outside: Sequence[str]
) -> list[dict[str, Any]]:
    """Every candidate, from the most protected on; accuracies are means over the seeds."""
    each = zip(*(result.candidates for result in seeds.values()), strict=True)
    points = []
    for same in each:
        points.append(
            {
                **same[0].point,
                "alpha": same[0].alpha,
                "protection": same[0].protection,
                "validation": float(np.mean([c.validation for c in same])),
                "id": float(np.mean([measuring.mean_top1(c.measured, inside) for c in same])),
                "ood": float(np.mean([measuring.mean_top1(c.measured, outside) for c in same])),
            }
        )
    return sorted(points, key=lambda p: -p["protection"])


def verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whether fine-tuning costs anything here, and which methods spare it.

    Returns:
      Nothing without both `zero_shot` and `full`. Else `gain`, full's in distribution, with its
      `gain_standard_error` (that of a difference of independent test sets, which is more than
      that of the same images twice), `loss`, full's out of distribution, and `protecting`: the
      methods that, as chosen, are within `OOD_MARGIN` of zero-shot or better out of distribution
      with `ID_SHARE` of the gain or more. `sweep_protecting`: by method, the points of its sweep
      that are, which out-of-distribution data alone could have told.
    """
    if REFERENCE not in found or PLAIN not in found:
        return {}
    zero, full = found[REFERENCE], found[PLAIN]
    gain = full["id"] - zero["id"]

    def protects(own: Mapping[str, Any]) -> bool:
        near = own["ood"] >= zero["ood"] - OOD_MARGIN
        return near and own["id"] - zero["id"] >= ID_SHARE * gain > 0

    others = {name: own for name, own in found.items() if name not in NOT_PROTECTING}
    sweeps = {
        name: [_coefficients(point) for point in own.get("sweep", ()) if protects(point)]
        for name, own in others.items()
    }
    return {
        "gain": gain,
        "gain_standard_error": math.hypot(full["id_standard_error"], zero["id_standard_error"]),
        "loss": zero["ood"] - full["ood"],
        "protecting": [name for name, own in others.items() if protects(own)],
        "sweep_protecting": {name: points for name, points in sweeps.items() if points},
    }


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of text: the first two are names, the others numbers."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """For a terminal."""
        return tables.aligned(self.head, self.rows, names=2)

    def markdown(self) -> str:
        """As Markdown."""
        return tables.markdown(self.head, self.rows, names=2)


def accuracies(results: Mapping[str, Any]) -> Table:
    """Accuracy in percent; the means with the half width of their 95 % intervals."""
    shown = [*results["inside"], *results["outside"]]
    head = ("method", "chosen", "ID %", "OOD %", *shown)
    rows = [
        (
            name,
            _chosen(own["chosen"]),
            *(_percent(own[key], own[f"{key}_interval"]) for key in ("id", "ood")),
            *(f"{100 * own['test_sets'][test_set]:.1f}" for test_set in shown),
        )
        for name, own in results["methods"].items()
    ]
    return Table(head, rows)


def changes(results: Mapping[str, Any]) -> Table:
    """How far weights and features moved, and what training took; means over the seeds."""
    head = (
        "method", "chosen", "moved %", "cosine ID", "cosine OOD", "CKA ID", "CKA OOD",
        "seconds", "peak MiB", "trained",
    )  # fmt: skip
    rows = []
    for name, own in results["methods"].items():
        seeds = own["seeds"]

        def mean(*path: str, of: Sequence[Mapping[str, Any]] = seeds) -> float | None:
            values = []
            for value in of:
                found: Any = value
                for key in path:
                    found = found.get(key) if found else None
                values.append(found)
            return None if None in values else float(np.mean(values))

        rows.append(
            (
                name,
                _chosen(own["chosen"]),
                _number(mean("distance", "all"), 100, ".2f"),
                *(
                    _number(mean("features", f"{measure}_{where}"), 1, ".3f")
                    for measure in ("cosine", "cka")
                    for where in ("id", "ood")
                ),
                _number(mean("took", "seconds"), 1, ".0f"),
                _number(mean("took", "peak_bytes"), 2**-20, ",.0f"),
                _number(mean("took", "trained"), 1, ",.0f"),
            )
        )
    return Table(head, rows)


def text(results: Mapping[str, Any]) -> str:
    """What is printed: both tables and the verdict."""
    found = [accuracies(results).text(), changes(results).text()]
    told = results["verdict"]
    if told:
        error = 200 * told["gain_standard_error"]
        found.append(
            f"full fine-tuning: {100 * told['gain']:+.1f} points in distribution (two standard "
            f"errors: {error:.1f}), {-100 * told['loss']:+.1f} out of distribution\n"
            f"at least {100 * ID_SHARE:.0f} % of that gain, and within {100 * OOD_MARGIN:.0f} "
            "points of zero-shot or above it out of distribution: "
            f"{', '.join(told['protecting']) or 'no method'}\n"
            f"somewhere on its sweep: {_on_sweeps(told['sweep_protecting']) or 'no method'}"
        )
    return "\n\n".join(found)


def write(directory: Path, results: Mapping[str, Any]) -> None:
    """Writes `table.md`, `table.csv` and `sweeps.csv` (every candidate) into a directory."""
    both = (accuracies(results), changes(results))
    files.write_text(directory / "table.md", "\n\n".join(table.markdown() for table in both) + "\n")
    joined = Table(
        both[0].head + both[1].head[2:],
        [first + second[2:] for first, second in zip(both[0].rows, both[1].rows, strict=True)],
    )
    _write_csv(directory / "table.csv", joined.head, joined.rows)
    keys = ("alpha", *_MEASURED)
    rows = [
        (name, _chosen({k: v for k, v in p.items() if k not in keys}), *(p[key] for key in keys))
        for name, own in results["methods"].items()
        for p in own.get("sweep", ())
    ]
    _write_csv(directory / "sweeps.csv", ("method", "coefficients", *keys), rows)


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([head, *rows])
    files.write_text(path, buffer.getvalue())


def _coefficients(point: Mapping[str, float]) -> dict[str, float]:
    """Of a sweep's point; alpha is told of where it interpolates."""
    own = {name: value for name, value in point.items() if name not in _MEASURED}
    return own if own["alpha"] != 1.0 or len(own) == 1 else {k: own[k] for k in own if k != "alpha"}


def _on_sweeps(points: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    told = ("; ".join(map(_chosen, own)) for own in points.values())
    return ", ".join(f"{name} ({own})" for name, own in zip(points, told, strict=True))


def _chosen(point: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items() if name != "validation")


def _percent(mean: float, interval: Sequence[float]) -> str:
    return f"{100 * mean:.1f} ± {50 * (interval[1] - interval[0]):.1f}"


def _number(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else format(value * scale, form)
