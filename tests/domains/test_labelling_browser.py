"""The labelling page in a real browser: what people click and press is what the store holds.

Needs a Chromium, which `make test` installs where it can (tools/install_browser.sh).
"""

import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from clipdg_jax.data import engine, schema, writing
from clipdg_jax.domains import labels
from tests.domains.photos import png
from tools import label

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

ROOT = pathlib.Path(label.__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = dict(zip(schema.DOMAINS, "123", strict=True))
COUNT = 200
PAGE = 25


def executable(playwright) -> str | None:
    """A Chromium of this machine, or Playwright's own; None where there is neither."""
    on_path = filter(None, map(shutil.which, NAMES))
    own = playwright.chromium.executable_path
    return next(on_path, own if os.path.exists(own) else None)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        path = executable(playwright)
        if path is None:
            pytest.skip("no Chromium found; tools/install_browser.sh installs one where it can")
        # Chromium's own sandbox does not work as root and in most containers.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return writing.write_dataset(
        tmp_path_factory.mktemp("data") / "photos",
        engine.index_shards(260, 1000),
        engine.Each(lambda i: schema.Record(f"photos/{i}", png(i))),
        config={"tool": "a test"},
    )


class Server:
    """`python -m tools.label` in a process of its own, which can be killed and started again."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.port = 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "tools.label", *self.arguments, f"--port={self.port}"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.links = []
        for line in self.process.stdout:
            self.links += re.findall(r"http://\S+", line)
            if "Ctrl-C" in line:
                break
        assert self.links, "the server has not come up"
        self.port = int(re.search(r":(\d+)/", self.links[0])[1])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def serve(dataset, tmp_path):
    """Starts servers on one label file; all end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            file = f"--labels={tmp_path / 'labels.sqlite'}"
            server = Server(f"--dataset={dataset.path}", file, *arguments)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def visit(browser):
    """Opens a page in a browser session of its own; what the page's code raises fails the test."""
    raised = []
    with contextlib.ExitStack() as stack:

        def opened(link, width=1280, height=900):
            context = browser.new_context(viewport={"width": width, "height": height})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: raised.append(str(error)))
            page.goto(link)
            page.wait_for_selector(".tile")
            loaded(page)
            return page

        yield opened
    assert raised == []


def loaded(page):
    """Waits until the images of the page are there: before, they cannot be labelled."""
    page.locator(".tile:not([data-seen])").first.wait_for(state="detached")


def all_saved(page):
    page.wait_for_selector("#saving[data-pending='0']")


def number(page):
    """The page's first and last position."""
    tiles = page.locator(".tile")
    return [int(tile.get_attribute("data-position")) for tile in (tiles.first, tiles.last)]


def in_store(tmp_path, annotator):
    """What the file holds, by position, read by another process than the server's."""
    with labels.Store(tmp_path / "labels.sqlite") as store:
        (draw,) = store.draws()
        order = {item.key: n for n, item in enumerate(store.items(draw.id))}
        return {order[found.key]: found.domain for found in store.labels(draw.id, annotator)}


def planned(annotator):
    """What an annotator is going to say, by position."""
    shift = len(annotator)
    return {n: schema.DOMAINS[(n * n // 3 + shift * n) % 3] for n in range(COUNT)}


def type_page(page, domains):
    """Labels the images of one page by keyboard, which moves on to the next page by itself."""
    loaded(page)
    for domain in domains:
        page.keyboard.press(KEYS[domain])


def click_page(page, first, domains):
    """Labels the images of one page by click: each brush in turn, then the next page."""
    loaded(page)
    assert number(page)[0] == first
    middle = "(e) => { const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + 50]; }"
    places = page.locator(".tile").evaluate_all(f"(all) => all.map({middle})")
    for brush in schema.DOMAINS:
        page.click(f".brush[data-brush={brush}]")
        for place, domain in zip(places, domains, strict=True):
            if domain == brush:
                page.mouse.click(*place)
    page.click("[data-act=next]")


def test_two_annotators_and_a_killed_server_lose_nothing(serve, visit, tmp_path):
    flags = (f"--count={COUNT + 30}",)
    servers = {name: serve(f"--annotator={name}", *flags) for name in ("anna", "ben")}
    pages = {name: visit(server.links[0]) for name, server in servers.items()}
    plans = {name: list(planned(name).values()) for name in servers}
    typing = 0.0
    for first in range(0, COUNT, PAGE):
        if first == COUNT // 2:
            # Killed while labels are under way: pressed, but not all of them answered for.
            type_page(pages["anna"], plans["anna"][first : first + 10])
            for server in servers.values():
                server.kill()
            type_page(pages["anna"], plans["anna"][first + 10 : first + PAGE])
            told = pages["anna"].locator("#trouble")
            told.wait_for(state="visible")
            assert "NOT SAVED" in told.inner_text()
            waiting = pages["anna"].locator(".tile.pending").count()
            waiting += PAGE * (number(pages["anna"])[0] > first)  # it has gone on to the next page
            assert waiting >= 15
            held = in_store(tmp_path, "anna")
            assert len(held) <= first + 10
            assert held.items() <= planned("anna").items()
            for server in servers.values():
                server.start()
            all_saved(pages["anna"])
            assert not told.is_visible()
        else:
            begin = time.perf_counter()
            type_page(pages["anna"], plans["anna"][first : first + PAGE])
            all_saved(pages["anna"])
            typing += time.perf_counter() - begin
        click_page(pages["ben"], first, plans["ben"][first : first + PAGE])
    for name, page in pages.items():
        all_saved(page)
        assert in_store(tmp_path, name) == planned(name)
        assert page.locator("#count").inner_text() == f"{COUNT} of {COUNT + 30} done"
    rate = 60 * (COUNT - PAGE) / typing
    print(f"{rate:.0f} labels a minute by keyboard, each on the disk")
    assert rate > 120
    # A page loaded anew shows what the store holds, and begins where work is left.
    page = visit(servers["anna"].links[0])
    assert number(page)[0] == COUNT
    page.keyboard.press("ArrowLeft")
    last = [page.locator(f".tile.{domain}").count() for domain in schema.DOMAINS]
    said = collections.Counter(plans["anna"][-PAGE:])
    assert last == [said[domain] for domain in schema.DOMAINS]


def test_keys_clicks_undo_zoom_and_rubric(serve, visit, tmp_path):
    server = serve("--annotator=anna", "--count=60")
    page = visit(server.links[0])
    tile = lambda n: page.locator(f".tile[data-position='{n}']")  # noqa: E731
    current = lambda: int(page.locator(".tile.current").get_attribute("data-position"))  # noqa: E731
    held = lambda: in_store(tmp_path, "anna")  # noqa: E731

    # The click cycles through all labels and back to none.
    for domain in (*schema.DOMAINS, None):
        tile(3).click()
        all_saved(page)
        assert held() == ({3: domain} if domain else {})
        assert ("no label" if domain is None else domain) in tile(3).get_attribute("aria-label")
    # A label is a colour and a letter.
    page.keyboard.press("2")
    assert tile(3).locator(".letter").inner_text()[0] == "R"
    assert current() == 4
    page.keyboard.press("1")
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert current() == 3
    page.keyboard.press("Backspace")
    page.keyboard.press("n")
    page.keyboard.press("3")
    all_saved(page)
    assert held() == {4: "ambiguous"}
    # Undo goes back change by change, also over those of an earlier visit.
    page.reload()
    page.wait_for_selector(".tile")
    loaded(page)
    for expected in ({4: "natural"}, {3: "rendition", 4: "natural"}, {3: "rendition"}):
        page.keyboard.press("u")
        all_saved(page)
        assert held() == expected
    # A key held down does not run through the images.
    page.keyboard.press("g")
    assert current() == 0
    page.keyboard.down("1")
    for _ in range(5):
        page.keyboard.down("1")  # what a browser sends while a key stays down
    page.keyboard.up("1")
    all_saved(page)
    assert held() == {0: "natural", 3: "rendition"}
    # Keys that belong to the browser stay the browser's.
    page.keyboard.press("Control+2")
    all_saved(page)
    assert held() == {0: "natural", 3: "rendition"}

    # Zoom: the image at current, large, with crisp pixels; the keys work there.
    assert current() == 1
    page.keyboard.press("z")
    large = page.locator("#large")
    page.wait_for_selector("#large.tiny")
    assert large.bounding_box()["width"] > 400
    assert large.evaluate("(i) => getComputedStyle(i).imageRendering") == "pixelated"
    assert large.get_attribute("src").endswith("/1")
    page.keyboard.press("3")
    assert large.get_attribute("src").endswith("/2")
    page.click("#zoom [data-set=natural]")
    page.keyboard.press("Escape")
    all_saved(page)
    assert held() == {0: "natural", 1: "ambiguous", 2: "natural", 3: "rendition"}
    assert current() == 3

    # The rubric shows what this annotator said, latest first.
    page.keyboard.press("?")
    shown = {
        domain: [
            int(image.get_attribute("src").rpartition("/")[2])
            for image in page.locator(f".examples[data-domain={domain}] img").all()
        ]
        for domain in schema.DOMAINS
    }
    assert shown == {"natural": [2, 0], "rendition": [3], "ambiguous": [1]}
    page.keyboard.press("1")  # nothing is labelled from under the rubric
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible()
    all_saved(page)
    assert len(held()) == 4

    # Arrows turn pages, of any size; there is none before the first or after the last.
    page.keyboard.press("ArrowRight")
    assert number(page) == [25, 49]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert number(page) == [50, 59]
    page.select_option("#size", "3")
    assert number(page) == [45, 53]
    page.locator("#grid .tile").first.focus()
    page.keyboard.press("g")
    assert current() == 4


def test_images_that_have_not_come_cannot_be_labelled(serve, visit, browser, tmp_path):
    server = serve("--annotator=anna", "--count=9")
    context = browser.new_context()
    page = context.new_page()
    page.route("**/image/*/0", lambda route: None)  # never answered
    page.route("**/image/*/1", lambda route: route.fulfill(status=415, body="{}"))
    page.goto(server.links[0])
    page.wait_for_selector(".tile .note")
    page.keyboard.press("1")
    page.keyboard.press("n")
    page.keyboard.press("3")  # one that cannot be shown can be labelled, once it has said so
    all_saved(page)
    assert in_store(tmp_path, "anna") == {1: "ambiguous"}
    context.close()


def test_a_page_of_another_draw_is_told_to_load_again(serve, visit, tmp_path):
    server = serve("--annotator=anna", "--count=9")
    page = visit(server.links[0])
    server.kill()
    server.arguments = [a.replace("--count=9", "--count=10") for a in server.arguments]
    server.start()
    page.keyboard.press("1")
    told = page.locator("#trouble")
    told.wait_for(state="visible")
    assert "NOT SAVED: 1 label" in told.inner_text()
    assert "another draw" in told.inner_text()
    assert page.locator(".tile.pending").count() == 1
    with labels.Store(tmp_path / "labels.sqlite") as store:
        assert store.labels() == []


def test_one_server_with_a_link_each_and_adjudication_on_a_phone(serve, visit, tmp_path):
    server = serve("--annotator=anna,ben", "--count=30")
    for link, key in zip(server.links, "12", strict=True):
        page = visit(link)
        assert page.url.endswith("/")  # the token does not stay in the address
        for _ in range(3):
            page.keyboard.press(key)
        all_saved(page)
    server.kill()
    server.arguments = [a.replace("anna,ben", "carla") for a in server.arguments]
    server.arguments.append("--adjudicate")
    server.start()
    page = visit(server.links[0], width=375, height=700)
    assert page.locator(".tile").count() == 3
    votes = page.locator(".tile .votes").first
    assert re.findall(r"[A-Z]", votes.inner_text()) == ["N", "R"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.locator(".tile").nth(0).click()
    page.locator(".brush[data-brush=rendition]").click()
    page.locator(".tile").nth(1).click()
    all_saved(page)
    with labels.Store(tmp_path / "labels.sqlite") as store:
        assert [a.domain for a in store.adjudications()] == ["natural", "rendition"]
        assert len(store.labels()) == 6
    page.click("[data-act=undo]")
    all_saved(page)
    with labels.Store(tmp_path / "labels.sqlite") as store:
        assert [a.domain for a in store.adjudications()] == ["natural"]
