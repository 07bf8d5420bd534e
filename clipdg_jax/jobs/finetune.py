"""Fine-tuning: a checkpoint and labelled images in, a comparison of protecting methods out."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import ml_collections
import numpy as np

from clipdg_jax import errors
from clipdg_jax.data import demo, resolve
from clipdg_jax.data import mixture as mixture_lib
from clipdg_jax.finetuning import combination, comparison, picture, plan, report, setting
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, metrics, sharding, workdir

PICTURE = "tradeoff.png"


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Trains, measures and compares; goes on where an earlier call was stopped.

    Raises:
      errors.UserError: a field, a dataset or the checkpoint is missing or wrong.
    """
    folded = [combination.fold(name, config) for name in chosen_methods(config)]
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    if config.dry_run:
        print(describe(config, folded, mesh))
        return
    if jax.process_count() > 1:
        raise errors.UserError(
            "--multihost: one process fine-tunes, on all devices of its host; leave it out"
        )
    seeds = _seeds(config)
    if config.data.demo:
        world = demo.DemoSpec(**config.data.demo.to_dict())
        demo.ensure_narrow(config.data.root, world, demo.NarrowSpec(**config.data.narrow.to_dict()))
    opened = setting.open_data(config)
    with workdir.claim(directory, config, _fingerprints(config, opened, folded)) as claimed:
        if claimed.results is not None:
            print(f"{directory}: this run is complete\n{report.text(claimed.results)}")
            return
        pretrained = setting.load(config, opened.train.classes, opened.inside[0], mesh)
        runs: dict[str, dict[int, comparison.Result]] = {each.name: {} for each in folded}
        for seed in seeds:
            if len(seeds) > 1:
                print(f"seed {seed}", flush=True)
            compared = comparison.Comparison(
                config,
                opened,
                pretrained,
                seed,
                claimed.path / f"seed-{seed}",
                [each.name for each in folded],
                _say,
            )
            for each in folded:
                runs[each.name][seed] = compared.run(each.name)
        results = report.gather(
            runs,
            [test_set.name for test_set in opened.inside],
            [test_set.name for test_set in opened.outside],
            {each.name: each.after.also for each in folded if each.after},
        ) | {"checkpoint": pretrained.origin, "skipped": dict(opened.skipped)}
        report.write(claimed.path, results)
        picture.draw(results, claimed.path / PICTURE)
        _log(claimed.path, results)
        claimed.finish(results)
        for name, reason in opened.skipped.items():
            print(f"skipped {name}: {reason}")
        print(f"{report.text(results)}\n\n{claimed.path / PICTURE}: the trade-off as a picture")


def chosen_methods(config: ml_collections.ConfigDict) -> list[str]:
    """The combinations that a config asks for, each once."""
    names = [name for name in map(str.strip, config.methods.split(",")) if name]
    if not names:
        raise errors.UserError("config.methods: is empty; name methods, such as full,l2+wise_ft")
    return list(dict.fromkeys(names))


def describe(
    config: ml_collections.ConfigDict,
    folded: Sequence[combination.Combination],
    mesh: jax.sharding.Mesh,
) -> str:
    """The dry run's report; needs no data. Sizes of data are those that `config.assumed` names."""
    model = model_lib.Model(setting.architecture(config))
    examples = config.data.examples or config.assumed.records
    lines = []
    for each in folded:
        if not each.trains:
            lines.append(f"{each.name}: nothing is trained, {model.num_params():,} parameters")
            continue
        planned = plan.make_plan(
            combination.fold(each.training, config),
            config,
            model,
            mesh,
            examples=examples,
            classes=config.assumed.classes,
        )
        count = len(each.points())
        measured = count * len(each.after.alphas if each.after else (1.0,))
        told = f"{count} training{'s' * (count > 1)}, {measured} models measured"
        lines.append(
            f"{each.name}: {each.training} on {examples:,} images, {told}\n"
            f"{planned.report(config.model.name)}"
        )
    return "\n\n".join(lines)


def _seeds(config: ml_collections.ConfigDict) -> list[int]:
    """The seeds of a config, a number or several."""
    given: Any = config.seeds
    found = [given] if isinstance(given, int) else list(given)
    if not found or len(set(found)) < len(found):
        raise errors.UserError(f"config.seeds: {given}; give one number or several, each once")
    return found


def _fingerprints(
    config: ml_collections.ConfigDict,
    opened: setting.Opened,
    folded: Sequence[combination.Combination],
) -> dict[str, str]:
    """What identifies the datasets and the checkpoint."""
    saved = checkpoints.saved(checkpoints.directory_of(config.checkpoint))
    found = {"checkpoint": saved[max(saved)], **opened.fingerprints()}
    for each in folded:
        if each.data.replay:
            text, root = each.data.mix, config.data.root
            if not text:
                text, root = setting.mix_of_run(config.checkpoint)
            for name in mixture_lib.parse_mix(text).active_names:
                found[f"replayed {name}"] = resolve.resolve(name, root).fingerprint
    return found


def _log(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """TensorBoard: each method's sweep as scalars, the table and the picture."""
    log = metrics.MetricLog(directory, 0, 0)
    for name, own in results["methods"].items():
        for number, point in enumerate(own.get("sweep", ())):
            values = {f"{name}/{key}": point[key] for key in ("validation", "id", "ood")}
            log.write(number, values)
    log.text(0, "table", report.accuracies(results).markdown())
    image = cv2.imread(str(directory / PICTURE))
    if image is not None:
        log.images(0, "tradeoff", np.ascontiguousarray(image[None, ..., ::-1]))
    log.close()


def _say(text: str) -> None:
    print(text, flush=True)
