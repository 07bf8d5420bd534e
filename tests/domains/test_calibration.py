import json
import math

import numpy as np
import pytest

from clipdg_jax.domains import calibration, measures
from clipdg_jax.errors import UserError


def draw(rng, n, noise=0.0, levels=None):
    """Scores and labels of n images, of which `noise` are labelled wrongly at random."""
    positive = rng.random(n) < 0.45
    scores = rng.normal(size=n) + 3.5 * positive
    if levels:
        scores = np.round(scores * levels) / levels
    return scores, positive ^ (rng.random(n) < noise)


def wilson_low(correct, n, z=1.959963984540054):
    """The smaller root x of (p - x)^2 = z^2 x (1 - x) / n."""
    p, b = correct / n, z * z / n
    return (2 * p + b - math.sqrt((2 * p + b) ** 2 - 4 * (1 + b) * p * p)) / (2 * (1 + b))


def brute_force(scores, positive, target, rule, min_support):
    """Every candidate against the words of the definition; None where none qualifies."""
    found = []
    for t in sorted(set(scores)):
        qualifies = (scores >= t).sum() >= min_support
        for above in sorted(set(scores)):
            taken = scores >= above
            if above >= t and taken.sum() >= min_support:
                qualifies &= positive[taken].sum() / taken.sum() >= target
        if rule == "lower_bound":
            taken = scores >= t
            qualifies &= wilson_low(positive[taken].sum(), taken.sum()) >= target
        if qualifies:
            found.append(t)
    return min(found, default=None)


@pytest.mark.parametrize("rule", calibration.RULES)
@pytest.mark.parametrize("levels", [None, 8, 1])
def test_the_threshold_is_that_of_a_search_through_all_candidates(rule, levels):
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(40):
        scores, positive = draw(rng, int(rng.integers(20, 150)), rng.choice([0, 0.05]), levels)
        target = rng.choice([0.5, 0.8, 0.9])
        support = int(rng.integers(1, 40))
        expected = brute_force(scores, positive, target, rule, support)
        try:
            got = calibration.threshold(
                scores, positive, target=target, rule=rule, min_support=support
            )
        except UserError:
            got = None
        assert got == expected
        outcomes.append(got)
    assert 3 < sum(outcome is None for outcome in outcomes) < 37  # both ends of the rule are seen


def test_precision_that_recovers_below_a_bad_stretch_does_not_count():
    # 60 right, 10 wrong, 400 right: at the bottom precision is .979 again, on the way it was .857.
    positive = np.repeat([True, False, True], [60, 10, 400])
    scores = np.arange(470, 0, -1.0)
    got = calibration.threshold(scores, positive, target=0.97, rule="point")
    assert (scores >= got).sum() == 61  # 60 of 61 is .984, 60 of 62 .968


def test_tied_scores_are_taken_together():
    scores = np.repeat([3.0, 2.0, 1.0], [50, 10, 10])
    positive = np.repeat([True, False, True, False], [50, 1, 9, 10])
    # In this order the 51st would be wrong: precision .98, but 59 of 60 when the ties go together.
    assert calibration.threshold(scores, positive, target=0.983, rule="point") == 2.0
    assert calibration.threshold(scores, positive, target=0.99, rule="point") == 3.0


def test_a_lower_bound_of_98_percent_takes_189_images_without_a_fault():
    positive = np.ones(188, bool)
    with pytest.raises(UserError, match=r"the highest lower bound 0\.9799, 188 of 188"):
        calibration.threshold(np.arange(188.0), positive, target=0.98, rule="lower_bound")
    scores = np.arange(189.0)
    assert not calibration.threshold(scores, scores >= 0, target=0.98, rule="lower_bound")
    assert calibration.threshold(scores[:50], scores[:50] >= 0, target=0.98, rule="point") == 0


def test_a_lower_bound_never_takes_more_than_the_estimate():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, positive = draw(rng, 2000)
        point, bound = (
            calibration.threshold(scores, positive, target=0.98, rule=rule)
            for rule in ("point", "lower_bound")
        )
        assert point < bound


@pytest.mark.parametrize(
    ("scores", "positive", "rule", "parts"),
    [
        (np.arange(30.0), np.ones(30, bool), "point", ["30 labels, fewer than min_support 50"]),
        (
            np.arange(100, 0, -1.0),
            np.arange(100) % 10 > 0,
            "point",
            ["the best is 0.9000, 90 of 100 images (of 100, 90 of them positive)", "lower target"],
        ),
        (
            np.arange(300, 0, -1.0),
            np.arange(300) % 50 > 0,
            "lower_bound",
            [
                "the highest lower bound 0.9570, 294 of 300",
                "rule 'point'",
                "more validation labels",
            ],
        ),
        (
            np.arange(900, 0, -1.0),
            np.arange(900) > 3,
            "lower_bound",
            ["but precision is 0.9200 on the 50 surest", "checking the labels", "896 of 900"],
        ),
        (np.arange(60.0), np.zeros(60, bool), "point", ["0.0000, 0 of 60", "0 of them positive"]),
    ],
)
def test_a_target_out_of_reach_is_refused_in_one_line(scores, positive, rule, parts):
    with pytest.raises(UserError) as caught:
        calibration.threshold(scores, positive, target=0.98, rule=rule, name="rendition decider")
    message = str(caught.value)
    assert message.startswith("rendition decider: no threshold reaches precision 0.98")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("field", "value"),
    [("target", 98), ("rule", "wilson"), ("min_support", 0), ("confidence", 1.0)],
)
def test_arguments_out_of_range_are_refused_by_name(field, value):
    arguments = {"target": 0.9, "rule": "point", "min_support": 5, "confidence": 0.9}
    scores = np.arange(60.0)
    with pytest.raises(UserError, match=f"calibration.{field}: is "):
        calibration.threshold(scores, scores > 0, **(arguments | {field: value}))
    with pytest.raises(UserError, match=f"calibration.{field}: is "):
        calibration.calibrate(
            np.stack([scores, scores], 1),
            np.zeros(60, int),
            allow_unreached=True,
            **(arguments | {field: value}),
        )


def three_domains(n=1200, separation=4.0):
    rng = np.random.default_rng(2)
    domain = rng.choice(3, n, p=[0.4, 0.4, 0.2])
    scores = rng.normal(size=(n, 2)) + separation * (domain[:, None] == np.arange(2)[None])
    return scores.astype(np.float32), domain


def test_calibration_of_both_deciders_survives_json():
    scores, domain = three_domains()
    made = calibration.calibrate(scores, domain, target=0.97, resamples=50)
    again = calibration.Calibration.from_json(json.loads(json.dumps(made.to_json())))
    assert again.deciders == made.deciders
    for column, decider in enumerate(made.deciders):
        assert decider.domain == calibration.DECIDED[column]
        positive = domain == column
        assert decider.threshold == calibration.threshold(
            scores[:, column], positive, target=0.97, rule="lower_bound"
        )
        assert decider.validation == measures.measure(
            scores[:, column], positive, decider.threshold, resamples=50
        )
        assert decider.validation.precision.low >= 0.97
        np.testing.assert_array_equal(again.curves[column].recall, made.curves[column].recall)
        assert len(made.curves[column].recall) == 500
    np.testing.assert_array_equal(
        calibration.decide(scores, again), calibration.decide(scores.astype(np.float64), made)
    )


def test_a_decider_out_of_reach_names_its_domain_or_takes_nothing():
    scores, domain = three_domains()
    scores[:, 1] = scores[::-1, 1]
    with pytest.raises(UserError, match=r"^rendition decider: no threshold"):
        calibration.calibrate(scores, domain)
    made = calibration.calibrate(scores, domain, allow_unreached=True, resamples=50)
    made = calibration.Calibration.from_json(
        json.loads(json.dumps(made.to_json(), allow_nan=False))
    )
    natural, rendition = made.deciders
    assert natural.refusal == ""
    assert rendition.refusal.startswith("rendition decider: no threshold")
    assert rendition.threshold == math.inf
    assert rendition.validation.decided == 0
    assert set(calibration.decide(scores, made)) == {0, 2}


def test_decisions():
    scores, domain = three_domains()
    made = calibration.calibrate(scores, domain, resamples=50)
    natural, rendition = (decider.threshold for decider in made.deciders)
    below = np.nextafter(np.float32(natural), -np.inf)
    asked = np.array(
        [[natural, rendition - 1], [below, rendition], [below, rendition - 1], [9, 9]], np.float32
    )
    names = [calibration.DECISIONS[i] for i in calibration.decide(asked, made)]
    assert names == ["natural", "rendition", "ambiguous", "conflict"]
    assert calibration.decide(asked, made).dtype == np.int8


def test_lower_bound_keeps_its_promise_where_the_estimate_does_not():
    """Over draws of 3000 clean validation labels; true precision is known in closed form."""
    rng = np.random.default_rng(3)

    def true_precision(t, prevalence=0.45, shift=3.5):
        right = prevalence * math.erfc((t - shift) / math.sqrt(2))
        return right / (right + (1 - prevalence) * math.erfc(t / math.sqrt(2)))

    reached = {rule: [] for rule in calibration.RULES}
    for _ in range(300):
        scores, positive = draw(rng, 3000)
        for rule, values in reached.items():
            t = calibration.threshold(scores, positive, target=0.98, rule=rule)
            values.append(true_precision(t))
    assert np.mean(np.array(reached["lower_bound"]) >= 0.97) >= 0.99
    assert np.mean(np.array(reached["lower_bound"]) >= 0.98) >= 0.95
    assert np.mean(np.array(reached["point"]) >= 0.98) < 0.7
