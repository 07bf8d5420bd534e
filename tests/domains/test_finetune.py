import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.domains import fitting, recipe
from clipdg_jax.domains.methods import finetune
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.training import loop, sharding
from tests.domains import renders

CONFIG = {
    "mode": "full",
    "epochs": 4,
    "examples": 0,
    "batch_size": 16,
    "eval_every": 1,
    "log_every": 1,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "flip": True,
    "crop_scale": (0.9, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "optim": renders.OPTIM,
}
EPOCH, STEPS = 7, 28  # floor(120 / 16), and four of them.


@pytest.fixture(scope="module")
def train():
    return renders.labelled((60, 60, 0))


@pytest.fixture(scope="module")
def validation():
    return renders.labelled((20, 20, 3), first=500)


@pytest.fixture(scope="module")
def fitted(train, validation, tmp_path_factory):
    """One uninterrupted fit on one device: (method, workdir)."""
    workdir = tmp_path_factory.mktemp("fitted")
    context = renders.context(CONFIG, workdir)
    before = {k: np.asarray(v) for k, v in context.encoder.params.items()}
    done = finetune.Finetune.fit(train, validation, context)
    for name, value in before.items():  # The encoder belongs to others too.
        np.testing.assert_array_equal(context.encoder.params[name], value, err_msg=name)
    return done, workdir


def logged(workdir, field):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[field] for line in lines if field in line}


def assert_same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_it_learns_and_an_absent_domain_has_no_probability(fitted):
    test = renders.labelled((50, 50, 0), first=900)
    (inputs,) = test.batches()
    scores = fitted[0].score(inputs)
    assert scores.shape == (100, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert (scores.argmax(axis=1) == test.domain).mean() > 0.9


def test_the_step_of_the_lowest_validation_loss_is_kept(fitted, validation):
    measured = logged(fitted[1], "validation_loss")
    assert list(measured) == [EPOCH, 2 * EPOCH, 3 * EPOCH, STEPS]
    kept = [int(path.name) for path in (fitted[1] / "best").iterdir() if path.name.isdigit()]
    assert kept == [min(measured, key=measured.get)]
    # The loss that was measured is that of what is returned, ambiguous examples left out.
    (inputs,) = validation.batches()
    images = inputs.images(fitted[0]._classifier.architecture.vision.image_size)
    plain = dataclasses.replace(fitted[0]._classifier, mirrored=False)
    right = np.take_along_axis(
        np.asarray(plain(fitted[0]._params, images)),
        np.minimum(validation.domain, 1)[:, None],
        axis=1,
    )[:, 0]
    want = -np.log(right[validation.domain < 2]).mean()
    assert min(measured.values()) == pytest.approx(want, rel=1e-4)


class Stopped(Exception):
    pass


def stop_at(step, monkeypatch):
    """Ends a fit after the best was kept and before the loop saved the step's own checkpoint."""
    original = fitting._Selection.__call__

    def evaluate(self, number, state):
        values = original(self, number, state)
        if number == step:
            raise Stopped
        return values

    monkeypatch.setattr(fitting._Selection, "__call__", evaluate)


def test_stopped_twice_it_ends_with_the_same_bits(fitted, train, validation, tmp_path, monkeypatch):
    for step in (2 * EPOCH, 3 * EPOCH):
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(Stopped):
                finetune.Finetune.fit(train, validation, renders.context(CONFIG, tmp_path))
    done = finetune.Finetune.fit(train, validation, renders.context(CONFIG, tmp_path))
    assert_same_arrays(done.state().arrays, fitted[0].state().arrays)
    for field in ("loss", "validation_loss"):
        assert logged(tmp_path, field) == logged(fitted[1], field)


def test_eight_devices_give_the_same_losses(fitted, train, validation, tmp_path, monkeypatch):
    def stop(self, number, state):
        raise Stopped  # At the first evaluation: an epoch will do.

    monkeypatch.setattr(fitting._Selection, "__call__", stop)
    with pytest.raises(Stopped):
        finetune.Finetune.fit(train, validation, renders.context(CONFIG, tmp_path, devices=8))
    ours, theirs = logged(tmp_path, "loss"), logged(fitted[1], "loss")
    assert list(ours) == list(range(1, EPOCH + 1))
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step], rel=1e-5), step


def test_a_saved_one_scores_the_same(fitted, validation):
    state = fitted[0].state()
    assert not any(name.startswith("transformer") for name in state.arrays)
    meta = json.loads(json.dumps(state.meta))
    loaded = finetune.Finetune.load(type(state)(state.arrays, meta), renders.mesh(1))
    (inputs,) = validation.batches()
    np.testing.assert_array_equal(loaded.score(inputs), fitted[0].score(inputs))
    assert loaded.describe() == fitted[0].describe()


def test_trained_on_mirrored_images_it_is_the_mean_of_both(fitted, validation):
    done = fitted[0]
    (inputs,) = validation.batches()
    images = inputs.images(done._classifier.architecture.vision.image_size)
    plain = dataclasses.replace(done._classifier, mirrored=False)
    ways = [np.asarray(plain(done._params, x)) for x in (images, images[:, :, ::-1])]
    assert np.abs(ways[0] - ways[1]).max() > 1e-3
    np.testing.assert_allclose(done.score(inputs), sum(ways)[:, :2] / 2, rtol=1e-5, atol=1e-7)
    assert "mirror image" in done.describe()


def test_frozen_trains_the_readout_alone(train, validation, tmp_path):
    config = CONFIG | {"mode": "frozen", "epochs": 1}
    context = renders.context(config, tmp_path)
    arrays = dict(finetune.Finetune.fit(train, validation, context).state().arrays)
    readout = {name: arrays.pop(name) for name in (finetune.WEIGHT, finetune.BIAS)}
    assert_same_arrays(arrays, {k: np.asarray(v) for k, v in context.encoder.params.items()})
    classifier = finetune.Classifier(context.encoder.model.config, (True, True, False))
    start = classifier.init(np.uint32(0), {})
    assert all(np.abs(readout[name] - start[name]).max() > 1e-3 for name in readout)


def test_loss_equals_float64(validation):
    model, params = renders.tower()
    rng = np.random.default_rng(3)
    readout = {finetune.WEIGHT: rng.normal(size=(32, 3)), finetune.BIAS: rng.normal(size=3)}
    params = params | {name: value.astype(np.float32) for name, value in readout.items()}
    (inputs,) = validation.batches()
    image, label = inputs.images(32), validation.domain
    valid = rng.random(len(label)) < 0.8
    classifier = finetune.Classifier(model.config, (True, False, True))
    loss, rows, metrics = jax.jit(classifier.loss, static_argnames="smoothing")(
        params, image, label, valid, smoothing=0.2
    )
    features = np.float64(jax.jit(model.encode_image)(params, image))
    logits = features @ np.float64(params[finetune.WEIGHT]) + params[finetune.BIAS]
    total, count, right = 0.0, 0, 0
    for row in range(len(label)):
        if valid[row] and label[row] != 1:
            chances = np.exp(logits[row, [0, 2]])
            chances /= chances.sum()
            own = label[row] // 2
            total -= 0.8 * np.log(chances[own]) + 0.1 * np.log(chances).sum()
            right += chances.argmax() == own
            count += 1
    assert count > 10
    assert rows == count
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(right / count)


def test_flips_and_shares_are_functions_of_the_step():
    plan = finetune.plan(
        ml_collections.ConfigDict(CONFIG), renders.tower()[0].config, renders.mesh(1), examples=120
    )

    def augmented(first, steps, seed=0):
        batches = ({"valid": np.ones(16, bool)} for _ in range(steps))
        rows = list(fitting._augmented(batches, plan, first, seed))
        return np.stack([b["flip"] for b in rows]), np.stack([b["mix"] for b in rows])

    flips, shares = augmented(0, 50)
    for whole, resumed in zip((flips, shares), augmented(20, 30), strict=True):
        np.testing.assert_array_equal(whole[20:], resumed)
    assert abs(flips.mean() - 0.5) < 0.06
    others, other_shares = augmented(0, 50, seed=1)
    assert 0.4 < (flips != others).mean() < 0.6
    assert (shares != other_shares).mean() > 0.9
    assert abs(np.corrcoef(flips.ravel(), shares.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("alpha", [0.2, 0.5, 2.0])
def test_shares_of_mixup_follow_the_folded_beta_distribution(alpha):
    drawn = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    folded = np.minimum(drawn, 1 - drawn)
    uniform = (np.arange(10_000) + 0.5) / 10_000
    shares = recipe.mixup_share(uniform, alpha)
    wanted = np.quantile(folded, [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(shares[[1000, 3000, 5000, 7000, 9000]], wanted, atol=0.004)
    assert shares.max() <= 0.5


def test_rows_are_mirrored_and_mixed_and_so_are_their_targets():
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    seen = {}

    def loss(params, image, label, valid, share):
        seen.update(image=np.asarray(image), share=np.asarray(share))
        return 0.0, 4.0, {}

    batch = {
        "image": images,
        "label": np.zeros(4, np.int32),
        "valid": np.array([True, True, False, True]),
        "flip": np.array([True, False, False, False]),
        "mix": np.array([0.0, 0.25, 0.4, 0.3], np.float32),
    }
    recipe._objective(loss)({}, batch, {})
    mirrored = images[0, :, ::-1]
    np.testing.assert_array_equal(seen["image"][0], mirrored)
    exact = 0.75 * images[1].astype(np.float64) + 0.25 * mirrored
    assert np.abs(seen["image"][1] - exact).max() <= 0.5 + 1e-4
    # What cannot be read is neither mixed nor mixed in.
    np.testing.assert_array_equal(seen["image"][2:], images[2:])
    np.testing.assert_allclose(seen["share"], [0.0, 0.25, 0.0, 0.0])


def test_the_loss_of_mixed_rows_is_that_of_their_mixed_targets():
    model, tower = renders.tower()
    classifier = finetune.Classifier(model.config, (True, True, True))
    params = classifier.init(0, tower)
    side = model.config.vision.image_size
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(3, side, side, 3), dtype=np.uint8)
    label, valid = np.array([0, 1, 2]), np.ones(3, bool)
    share = np.array([0.1, 0.2, 0.3], np.float32)
    log = np.asarray(classifier.log_probabilities(params, images), np.float64)
    wanted = [-(1 - m) * log[i, label[i]] - m * log[i, label[i - 1]] for i, m in enumerate(share)]
    found, _, _ = classifier.loss(params, images, label, valid, share)
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-5)


PAPER = {
    "mode": "full",
    "epochs": 50,
    "examples": 0,
    "batch_size": 256,
    "eval_every": 1,
    "log_every": 50,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "flip": False,
    "crop_scale": (0.9, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "optim": {
        "name": "sgd",
        "schedule": "step",
        "lr": 0.1,
        "warmup": 0,
        "drop_every": 20,
        "drop_factor": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "clip": 0.0,
    },
}


def test_the_papers_plan():
    architecture = model_config.from_config({"name": "ViT-L-14"})
    mesh = sharding.make_mesh(devices=jax.devices()[:4])
    config = ml_collections.ConfigDict(PAPER)
    plan = finetune.plan(config, architecture, mesh, examples=13_000)
    assert (plan.steps, plan.evaluate_every) == (2500, 50)
    tower = 303_966_208  # open_clip's count of ViT-L/14's visual tower.
    assert sum(x.size for x in plan.abstract["params"].values()) == tower + 768 * 3 + 3
    assert plan.abstract["frozen"] == {}
    assert plan.flops_per_example == 3 * (flops.forward_flops_image(architecture) + 6 * 768)
    config.mode = "frozen"
    frozen = finetune.plan(config, architecture, mesh, examples=13_000)
    assert set(frozen.abstract["params"]) == {finetune.WEIGHT, finetune.BIAS}
    assert frozen.flops_per_example < 0.4 * plan.flops_per_example


def test_the_dry_run_reports_a_plan():
    plan = finetune.plan(
        ml_collections.ConfigDict(CONFIG), renders.tower()[0].config, renders.mesh(1), examples=120
    )
    text = plan.report("tiny")
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("steps")] == ["28"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "half"}, "finetune.mode: 'half' is unknown"),
        ({"label_smoothing": 1.0}, "finetune.label_smoothing: 1.0"),
        ({"eval_every": 0}, "eval_every: 0"),
        ({"epochs": 0}, "make no step"),
        ({"optim": renders.OPTIM | {"name": "lamb"}}, "optim.name: 'lamb'"),
    ],
)
def test_wrong_fields_are_named(changes, message, train, validation, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        finetune.Finetune.fit(train, validation, renders.context(CONFIG | changes, tmp_path))


def test_labels_that_do_not_suffice(train, validation, tmp_path):
    one = train.subset(train.domain == 0)
    with pytest.raises(errors.UserError, match="60 natural, 0 rendition, 0 ambiguous"):
        finetune.Finetune.fit(one, validation, renders.context(CONFIG, tmp_path))
    unknown = validation.subset(validation.domain == 2)
    with pytest.raises(errors.UserError, match="no validation image"):
        finetune.Finetune.fit(train, unknown, renders.context(CONFIG, tmp_path))


def test_another_trainings_directory_is_refused(fitted, train, validation):
    config = CONFIG | {"label_smoothing": 0.0}
    with pytest.raises(errors.UserError, match=r"identity\.config\.label_smoothing is 0\.1 there"):
        finetune.Finetune.fit(train, validation, renders.context(config, fitted[1]))


def test_a_finished_one_is_read_back(fitted, train, validation, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a step was made")

    monkeypatch.setattr(loop, "_show_inputs", refuse)
    before = (fitted[1] / "metrics.jsonl").read_text()
    again = finetune.Finetune.fit(train, validation, renders.context(CONFIG, fitted[1]))
    assert_same_arrays(again.state().arrays, fitted[0].state().arrays)
    assert (fitted[1] / "metrics.jsonl").read_text() == before
