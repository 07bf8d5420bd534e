import json

import numpy as np
import pytest

from clipdg_jax.data import images
from clipdg_jax.data.demo import captions as demo_captions
from clipdg_jax.data.demo import scene
from clipdg_jax.domains.methods import keywords, method
from clipdg_jax.errors import UserError
from tests.domains import records

CONFIG = {**keywords.WORDS, "learn_words": 0, "l2": 1e-3}
STYLES = (("natural",), ("sketch", "cartoon", "painting", "clipart"), ("ambiguous",))


def fit(domains, captions, **config):
    train = records.labelled(domains, captions)
    return keywords.Keywords.fit(train, train, records.context({**CONFIG, **config}))


def lists(natural="photo", rendition="sketch", ambiguous=""):
    return {"natural": natural, "rendition": rendition, "ambiguous": ambiguous}


def demo_pool(first, n):
    """Domains and captions of the demo world's pool, one half natural."""
    domains, found = [], []
    for i in range(first, first + n):
        domain = (0, 0, 0, 1, 1, 2)[i % 6]
        style = STYLES[domain][i // 6 % len(STYLES[domain])]
        domains.append(domain)
        found.append(demo_captions.caption(scene.sample(scene.World(), style, 0, i))[0])
    return np.array(domains), found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A PHOTO of a cat", {"photo"}),
        ("two photos, three Sketches", {"photo", "sketch"}),
        ("photosynthesis, sketchy, telephoto", set()),
        ("old tapestries", {"tapestry"}),
        ("an oil-painting", {"oil painting", "painting"}),
        ("Oil \n PAINTINGS!", {"oil painting", "painting"}),
        ("oil, on painted wood; painting-oil", {"painting"}),
        ("photo_123.jpg photo#1", {"photo"}),
        ("photo7", set()),
        ("Straßen-ATELIER im großen", {"strassen atelier"}),
        ("ＰＨＯＴＯ", {"photo"}),
        ("un cafe\u0301 dessine\u0301", {"dessiné"}),
        ("एक चित्रकला है", {"चित्रकला"}),
        ("एक चित्र है", set()),
        ("", set()),
    ],
)
def test_whole_words_match_in_any_case_script_and_simple_plural(text, found):
    listed = (
        ("photo", "strassen atelier"),
        ("sketch", "tapestry", "painting", "oil painting", "dessiné", "चित्रकला"),
        (),
    )
    vocabulary = keywords.Vocabulary(listed)
    (row,) = vocabulary.indicators([text])
    names = [*listed[0], *listed[1]]
    assert {names[i] for i in np.flatnonzero(row[3:])} == found
    groups = [any(name in group for name in found) for group in listed]
    assert row[:3].tolist() == groups


def test_a_listed_word_goes_before_the_plural_of_another():
    vocabulary = keywords.Vocabulary((("glass",), ("glas",), ()))
    assert vocabulary.indicators(["glass"]).tolist() == [[1, 0, 0, 1, 0]]
    assert vocabulary.indicators(["glas"]).tolist() == [[0, 1, 0, 0, 1]]


def test_lists_are_read_as_captions_are():
    parsed = keywords.parse(lists(" Photo, photo ,,Close-Up", "Sketch", ""))
    assert parsed == (("photo", "close up"), ("sketch",), ())
    with pytest.raises(UserError, match=r"keywords\.rendition: 'photo' is in keywords\.natural"):
        keywords.parse(lists(rendition="sketch, PHOTO"))
    with pytest.raises(UserError, match=r"keywords\.natural: '!\?' is no word"):
        keywords.parse(lists(natural="photo,!?"))


def test_the_words_that_come_with_it_can_be_read():
    parsed = keywords.parse(keywords.WORDS)
    assert [len(group) > 10 for group in parsed] == [True] * 3


def test_probabilities_are_the_shares_of_captions_with_the_word():
    # Where every caption has one of two words or none, and nothing holds the weights back.
    table = {"a photo": (30, 10, 10), "one sketch": (5, 40, 5), "cat": (20, 20, 60)}
    domains, captions = [], []
    for text, counts in table.items():
        domains += np.repeat([0, 1, 2], counts).tolist()
        captions += [text] * sum(counts)
    fitted = fit(domains, captions, **lists(), l2=1e-7)
    found = fitted.score(records.of(["my photos", "SKETCH", "dog"]))
    np.testing.assert_allclose(found, [[0.6, 0.2], [0.1, 0.8], [0.2, 0.2]], atol=1e-4)
    assert found.dtype == np.float32


def test_a_word_that_training_never_saw_counts_as_its_list_does():
    domains = [0, 0, 0, 1, 1, 1] * 10
    captions = ["photo", "photo", "cat", "sketch", "etching", "cat"] * 10
    fitted = fit(domains, captions, **lists("photo, snapshot", "sketch, etching, tattoo"))
    snapshot, tattoo, neither = fitted.score(records.of(["snapshot", "tattoo", "dog"]))
    assert snapshot[0] > 0.7
    assert tattoo[1] > 0.7
    np.testing.assert_allclose(neither, [0.5, 0.5], atol=0.1)


def test_a_rare_word_counts_less_than_a_frequent_one():
    domains = [0] * 100 + [1] * 100
    captions = ["cat"] * 100 + ["sketch"] * 50 + ["etching"] + ["cat"] * 49
    # Of different lists, so that neither borrows from the other.
    fitted = fit(domains, captions, **lists("photo", "sketch", "etching"))
    frequent, rare = fitted.score(records.of(["sketch", "etching"]))[:, 1]
    assert frequent > rare + 0.1


def test_mutual_information_is_that_of_the_definition():
    present, total = np.array([[30, 10, 0], [10, 10, 5], [0, 0, 20]]), np.array([40, 40, 20])

    def entropy(*weights):
        p = np.array([w for w in weights if w], float) / sum(weights)
        return -(p * np.log(p)).sum()

    for row, found in zip(present, keywords.mutual_information(present, total), strict=True):
        both = entropy(*row, *(total - row))
        assert found == pytest.approx(entropy(*total) + entropy(row.sum(), 100 - row.sum()) - both)
    # A word that is in just one domain's captions, in all of them, says all about that domain.
    np.testing.assert_allclose(
        keywords.mutual_information(present[2:], total), entropy(20, 80), rtol=1e-12
    )


def test_learned_words_are_the_most_informative_ones_that_are_not_listed():
    domains = [0, 0, 0, 0, 1, 1, 1, 1]
    captions = ["photo lens sun", "photos lens", "lens sun", "lens sea", "ink sun", "ink", "", "a"]
    fitted = fit(domains, captions, **lists(), learn_words=5)
    # `lens` tells all and `ink` half; `a` and `sea`, of one caption each, tell equally much; `sun`
    # is in two of one domain and one of the other. `photos` is listed, in effect.
    assert fitted.vocabulary.learned == ("lens", "ink", "a", "sea", "sun")
    lens, ink, sun = fitted.score(records.of(["lens", "ink", "sun"]))[:, 0]
    assert lens > sun > ink
    assert fit(domains, captions, **lists(), learn_words=2).vocabulary.learned == ("lens", "ink")
    assert len(fit(domains, captions, **lists(), learn_words=99).vocabulary.learned) == 5


def test_on_the_demo_worlds_captions_it_tells_domains_apart_without_images(monkeypatch):
    monkeypatch.setattr(images, "decode", lambda data: pytest.fail("needs no image"))
    domains, captions = demo_pool(0, 1200)
    unseen, test = demo_pool(60_000, 1200)
    gains = []
    for learn in (0, 40):
        scores = fit(domains, captions, learn_words=learn).score(records.of(test))
        assert (scores >= 0).all()
        assert (scores.sum(axis=1) <= 1 + 1e-6).all()
        # The share of pairs that a score orders rightly (ties half): chance is 0.5.
        for domain in (0, 1):
            inside, outside = scores[unseen == domain, domain], scores[unseen != domain, domain]
            apart = np.sign(inside[:, None] - outside[None, :])
            gains.append(0.5 + apart.mean() / 2)
    assert min(gains) > 0.75
    assert gains[2] > gains[0] + 0.01  # Places, such as "on the beach", are not on the lists.


def test_saved_and_loaded_it_scores_the_same():
    domains, captions = demo_pool(0, 300)
    fitted = fit(domains, captions, learn_words=5)
    state = fitted.state()
    state = method.State(dict(state.arrays), json.loads(json.dumps(state.meta)))
    again = keywords.Keywords.load(state, mesh=None)
    inputs = records.of(demo_pool(9000, 100)[1])
    np.testing.assert_array_equal(again.score(inputs), fitted.score(inputs))
    assert again.describe() == fitted.describe()
    assert again.describe().endswith(" listed, 5 learned")


def test_what_is_refused():
    with pytest.raises(UserError, match=r"keywords: no words are listed and none are learned"):
        fit([0, 1], ["a", "b"], **lists("", "", ""))
    with pytest.raises(UserError, match=r"keywords\.learn_words: -1"):
        fit([0, 1], ["a", "b"], learn_words=-1)
    with pytest.raises(UserError, match="needs two"):
        fit([0, 0], ["photo", "b"])
    with pytest.raises(UserError, match="l2"):
        fit([0, 1], ["photo", "b"], l2=0.0)
