"""The labelling page's server, by its HTTP interface; the page itself is tested in a browser."""

import pathlib
import re
import sqlite3
import subprocess
import sys

import pytest

from clipdg_jax.data import schema
from clipdg_jax.domains import label_table, labels, orders
from clipdg_jax.domains.labelling import desk, server
from clipdg_jax.errors import UserError
from tests.domains.photos import Photos, png
from tools import label

ROOT = pathlib.Path(label.__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as opened:
        yield opened


def draw_all(store, source):
    items = [labels.Item(i, f"photos/{i}", 1.0) for i in range(len(source))]
    return store.add_draw(source, "random", 0, items)


class Page:
    """What a browser with the page open sends."""

    def __init__(self, work, access, cookie=None):
        self.work = work
        self.access = access
        self.client = server.create_app(work, access).test_client()
        if cookie is not None:
            self.client.set_cookie(access.cookie, cookie, domain="127.0.0.1")

    def get(self, path, **kwargs):
        return self.client.get(path, base_url="http://127.0.0.1:8640", **kwargs)

    def post(self, path, fields=(), *, headers=(), **kwargs):
        sent = {"draw": self.work.tag, "annotator": self.access.annotators[0], **dict(fields)}
        return self.client.post(
            path, base_url="http://127.0.0.1:8640", headers=dict(headers), json=sent, **kwargs
        )

    def label(self, position, domain, **fields):
        return self.post("/api/label", {"position": position, "domain": domain, **fields})

    def image(self, position):
        return self.get(f"/image/{self.work.tag}/{position}")


@pytest.fixture
def page(store):
    source = Photos()
    return Page(desk.Desk(store, source, draw_all(store, source)), server.Access(("anna",)))


def on_disk(store):
    """What another program reads from the file."""
    with sqlite3.connect(store.path) as connection:
        return dict(connection.execute("SELECT key, domain FROM labels"))


def test_a_label_is_on_the_disk_when_it_is_answered_for(page, store):
    assert page.get("/api/state").json["labels"] == "." * 30
    for position, domain in ((3, "natural"), (4, "rendition"), (29, "ambiguous")):
        answer = page.label(position, domain)
        assert (answer.status_code, answer.json) == (200, {"position": position, "domain": domain})
        assert on_disk(store)[f"photos/{position}"] == domain
    assert page.get("/api/state").json["labels"] == "...NR" + "." * 24 + "A"
    assert page.label(3, None).status_code == 200
    assert "photos/3" not in on_disk(store)
    assert page.post("/api/undo").json == {"position": 3, "domain": "natural"}
    assert page.post("/api/undo").json == {"position": 29, "domain": None}
    assert on_disk(store) == {"photos/3": "natural", "photos/4": "rendition"}
    for _ in range(2):
        page.post("/api/undo")
    assert page.post("/api/undo").json == {"position": None, "domain": None}


def test_what_makes_no_sense_is_refused_and_changes_nothing(page, store):
    page.label(0, "natural")
    refused = {
        (404, "position"): [{"position": p} for p in (-1, 30, "0", None, 1.0, True, [1])],
        (400, "domain"): [{"domain": d} for d in ("painting", 1, "", ["natural"])],
        (403, "annotator"): [{"annotator": a} for a in ("ben", "", None, ["anna"])],
        (409, "draw"): [{"draw": d} for d in ("1-0", 1, None)],
    }
    for (status, field), cases in refused.items():
        for fields in cases:
            answer = page.label(**({"position": 1, "domain": "rendition"} | fields))
            assert (answer.status_code, fields) == (status, fields)
            assert field in answer.json["error"]
            assert "\n" not in answer.json["error"]
    assert page.post("/api/undo", {"annotator": "ben"}).status_code == 403
    assert on_disk(store) == {"photos/0": "natural"}
    url = "http://127.0.0.1:8640/api/label"
    for body, kind, status in (
        ("[]", "application/json", 400),
        ("{", "application/json", 400),
        ("{}", "text/plain", 415),
        ("position=1", "application/x-www-form-urlencoded", 415),
        ('{"a": "' + "x" * 20_000 + '"}', "application/json", 413),
    ):
        answer = page.client.post(url, data=body, content_type=kind)
        assert answer.status_code == status
        assert set(answer.json) == {"error"}
    assert page.get("/api/label").status_code == 405


def test_images_are_the_stored_bytes_and_may_be_kept(store):
    gif, svg = b"GIF89a" + bytes(20), b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    webp, jpeg = b"RIFF\x10\0\0\0WEBPVP8 ", b"\xff\xd8\xff\xe0" + bytes(20)
    source = Photos(images=((1, gif), (2, svg), (3, webp), (4, jpeg), (5, b"\0")), damaged=(6,))
    page = Page(desk.Desk(store, source, draw_all(store, source)), server.Access(("anna",)))
    for position, data, kind in (
        (0, png(0), "image/png"),
        (1, gif, "image/gif"),
        (3, webp, "image/webp"),
        (4, jpeg, "image/jpeg"),
    ):
        answer = page.image(position)
        assert (answer.data, answer.content_type) == (data, kind)
        assert answer.headers["Cache-Control"] == "private, max-age=86400, immutable"
    for position in (2, 5, 6):  # SVG may carry scripts
        answer = page.image(position)
        assert (answer.status_code, answer.mimetype) == (415, "application/json")
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_tag_stands_for_the_draw_and_its_content(store):
    source, other = Photos(), Photos(fingerprint="cafe")
    works = [
        desk.Desk(store, source, draw_all(store, source)),
        desk.Desk(store, source, store.add_draw(source, "random", 1, [labels.Item(0, "k", 0.5)])),
        desk.Desk(store, other, draw_all(store, other)),
    ]
    assert len({work.tag for work in works}) == 3
    page = Page(works[0], server.Access(("anna",)))
    assert page.get(f"/image/{works[1].tag}/0").status_code == 404
    with pytest.raises(UserError, match="has no draw 1 of photos"):
        desk.Desk(store, other, 1)


@pytest.mark.parametrize(
    "path",
    [
        "/image/{tag}/../../../../etc/passwd",
        "/image/{tag}/..%2f..%2f..%2fetc%2fpasswd",
        "/image/{tag}/30",
        "/image/{tag}/-1",
        "/image/{tag}/0x1",
        "/image/{tag}/photos/0",
        "/image/../0",
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/%2fetc%2fpasswd",
        "/static/app.js%00.html",
        "/static/..\\server.py",
        "/static/",
        "/etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_path_leads_to_a_file(page, path):
    answer = page.get(path.replace("{tag}", page.work.tag))
    assert answer.status_code in (308, 404)  # 308: the same path with its slashes merged
    assert b"root:" not in answer.data
    assert b"import" not in answer.data


def test_every_answer_carries_the_headers_that_bind_the_browser(page):
    for path in ("/", "/static/app.js", "/api/state", "/image/none/0", "/favicon.ico", "/none"):
        headers = page.get(path).headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] in ("no-store", "no-cache")
    html = page.get("/").text
    assert "http" not in html  # nothing from elsewhere
    assert re.findall(r"\s(?:style|on\w+)=", html) == []  # nothing that the policy forbids


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8640", "localhost:1", "[::1]:8640"])
def test_loopback_names_are_answered(page, host):
    assert page.client.get("/api/state", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8640", "127.0.0.1.evil.example", "192.168.1.5:8640", ""]
)
def test_other_names_of_this_machine_are_refused(page, host):
    assert page.client.get("/api/state", headers={"Host": host}).status_code in (400, 403)


def test_other_sites_may_not_write(page, store):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        answer = page.post("/api/label", {"position": 0, "domain": "natural"}, headers=headers)
        assert answer.status_code == 403
    assert on_disk(store) == {}
    own = {"Origin": "http://127.0.0.1:8640", "Sec-Fetch-Site": "same-origin"}
    answer = page.post("/api/label", {"position": 0, "domain": "natural"}, headers=own)
    assert answer.status_code == 200


def test_with_tokens_each_annotator_has_one(store):
    source = Photos()
    work = desk.Desk(store, source, draw_all(store, source))
    access = label.make_access(["anna", "ben"], "0.0.0.0", "a secret of mine")
    assert len(set(access.tokens.values())) == 2
    nobody = Page(work, access)
    for path in ("/", "/static/app.js", "/api/state", f"/image/{work.tag}/0"):
        assert nobody.get(path).status_code == 401
        assert nobody.get(path + "?token=a+secret+of+mine").status_code == 401
    assert nobody.label(0, "natural").status_code == 401
    # The link: the token goes into a cookie and leaves the address.
    answer = nobody.get("/?token=" + access.tokens["ben"])
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert "SameSite=Lax" in answer.headers["Set-Cookie"]
    assert nobody.get("/api/state").json["annotator"] == "ben"
    assert nobody.get("/api/state?annotator=anna").status_code == 403
    assert nobody.label(0, "natural", annotator="anna").status_code == 403
    assert nobody.post("/api/undo", {"annotator": "anna"}).status_code == 403
    assert nobody.label(0, "natural", annotator="ben").status_code == 200
    assert [(found.annotator, found.key) for found in store.labels()] == [("ben", "photos/0")]
    anna = Page(work, access, access.tokens["anna"])
    assert anna.get("/api/state").json["labels"] == "." * 30  # she does not see what ben said
    # With a token, names of the machine other than loopback's are fine.
    found = Page(work, access)
    found.client.set_cookie(access.cookie, access.tokens["ben"], domain="lab.example")
    answer = found.client.get("/api/state", base_url="http://lab.example:8640")
    assert answer.status_code == 200


def test_who_needs_a_token():
    assert label.make_access(["anna"], "127.0.0.1", None).tokens == {}
    made = label.make_access(["anna"], "0.0.0.0", None)
    assert len(made.tokens["anna"]) > 16
    assert made.tokens != label.make_access(["anna"], "0.0.0.0", None).tokens
    assert label.make_access(["anna", "ben"], "127.0.0.1", None).tokens.keys() == {"anna", "ben"}
    link = label.link(made, "anna", 8640)
    assert link == f"http://0.0.0.0:8640/?token={made.tokens['anna']}"
    assert label.link(label.make_access(["a"], "::1", None), "a", 1) == "http://[::1]:1/"
    for names, token in ((["anna"], "short"), ([], None), (["a", "a"], None)):
        with pytest.raises(UserError, match="--"):
            label.make_access(names, "127.0.0.1", token)
    for names, host in ((("a", "b"), "127.0.0.1"), (("a",), "0.0.0.0"), (("a",), "lab.example")):
        with pytest.raises(ValueError, match="need tokens"):
            server.Access(names, host=host)


def test_what_the_disk_has_no_room_for_is_not_answered_for(page, store):
    store._file.rows("PRAGMA max_page_count = 1")  # no more than the file has now
    saved = {}
    for change in range(5000):
        domain = schema.DOMAINS[(change + change // 30) % 3]
        answer = page.label(change % 30, domain)
        if answer.status_code != 200:
            break
        saved[f"photos/{change % 30}"] = domain
    assert answer.status_code == 503  # to be tried again
    assert "full" in answer.json["error"]
    assert on_disk(store) == saved


def test_adjudication_shows_all_labels_and_keeps_decisions(store):
    source = Photos()
    draw = draw_all(store, source)
    for name, domain in (("anna", "natural"), ("ben", "rendition"), ("carla", "natural")):
        store.set_all(name, draw, {"photos/4": domain, "photos/9": domain, "photos/5": "natural"})
    store.set("ben", draw, "photos/9", "natural")
    chosen = label.choose_draw(store, source, ["dora"], order="random", adjudicate=True)
    work = desk.Adjudication(store, source, chosen)
    page = Page(work, server.Access(("dora",)))
    state = page.get("/api/state").json
    assert state["adjudicate"] is True
    assert state["votes"] == [{"anna": "natural", "ben": "rendition", "carla": "natural"}]
    assert page.label(0, "rendition").status_code == 200
    decisions = store.adjudications()
    assert [(d.annotator, d.key, d.domain) for d in decisions] == [
        ("dora", "photos/4", "rendition")
    ]
    assert page.label(0, "natural").status_code == 200
    assert page.post("/api/undo").json == {"position": 0, "domain": "rendition"}
    assert page.get("/api/state").json["labels"] == "R"
    assert page.post("/api/undo").json == {"position": 0, "domain": None}
    assert page.post("/api/undo").json == {"position": None, "domain": None}
    assert store.adjudications() == []
    assert len(store.labels()) == 9  # the labels themselves stay as they were


def test_draws_begin_where_they_were_left(store):
    source = Photos()
    few = label.choose_draw(store, source, ["anna"], order="random", count=10)
    assert label.choose_draw(store, source, ["anna"], order="random", count=10) == few
    keys = [item.key for item in store.items(few)]
    store.set_all("anna", few, dict.fromkeys(keys, "natural"))
    more = label.choose_draw(store, source, ["anna"], order="random", count=20)
    assert store.progress(more, "anna") == (10, 20)
    assert [item.key for item in store.items(more)][:10] == keys
    other = label.choose_draw(store, source, ["anna"], order="random", count=20, seed=1)
    assert store.progress(other, "anna") == (0, 20)
    assert store.progress(label.choose_draw(store, source, ["b"], order="audit"), "b") == (0, 30)
    # A disagreement draw that somebody is in the middle of is gone on with, though labels
    # changed the order since.
    store.set_all("ben", few, dict.fromkeys(keys[:4], "rendition"))
    dispute = label.choose_draw(store, source, ["carla"], order="disagreement")
    assert store.progress(dispute, "carla") == (0, 4)
    last = store.items(dispute)[-1].key
    store.set("carla", dispute, last, "natural")
    assert [i.key for i in orders.disagreement(store, source)][-1] == last
    store.set("carla", dispute, store.items(dispute)[0].key, "natural")
    assert [i.key for i in orders.disagreement(store, source)] != [
        i.key for i in store.items(dispute)
    ]
    assert label.choose_draw(store, source, ["carla"], order="disagreement") == dispute
    with pytest.raises(UserError, match="--scores: missing"):
        label.choose_draw(store, source, ["anna"], order="uncertain")


def test_excluded_records_are_not_drawn(store):
    source = Photos()
    out = {f"photos/{i}" for i in range(10)}
    for order in ("random", "audit"):
        draw = label.choose_draw(store, source, ["anna"], order=order, exclude=out)
        found = next(d for d in store.draws() if d.id == draw)
        assert (found.size, found.population) == (20, 20)
        assert out.isdisjoint(item.key for item in store.items(draw))
        whole = [
            item.key for item in store.items(label.choose_draw(store, source, [], order=order))
        ]
        assert [item.key for item in store.items(draw)] == [k for k in whole if k not in out]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.label", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_agreement_and_export_from_the_command_line(store, tmp_path):
    source = Photos()
    draw = draw_all(store, source)
    for name, letters in (("anna", "NNNNNRRRRR"), ("ben", "NNNNRRRRRR")):
        domains = {"N": "natural", "R": "rendition"}
        found = {f"photos/{i}": domains[letter] for i, letter in enumerate(letters)}
        store.set_all(name, draw, found)
    out = tmp_path / "labels.parquet"
    done = run(f"--labels={store.path}", "--agreement", f"--export={out}")
    assert done.returncode == 0, done.stderr
    assert "20 labels and decisions" in done.stdout
    # kappa by hand: observed 9/10, by chance 5/10 4/10 + 5/10 6/10 = 1/2: (0.9 - 0.5) / 0.5
    assert "Cohen's kappa, anna and ben: 0.800" in done.stdout
    assert len(label_table.read(out)) == 20


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--labels: missing"),
        (["--labels={}/none", "--agreement"], "no such file"),
        (["--labels={}/l", "--annotator=a"], "--dataset: missing"),
        (["--labels={}/l", "--dataset=none"], "--annotator: give one name"),
        (["--labels={}/l", "--dataset={}/none", "--annotator=a"], "no such dataset"),
        (["--labels=l", "--dataset=d", "--order=uncertain", "--exclude=e"], "--exclude: only goes"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, told):
    done = run(*[argument.replace("{}", str(tmp_path)) for argument in arguments])
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
