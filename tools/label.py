r"""Labels images as natural, rendition or ambiguous, on a page in the browser.

    python -m tools.label --dataset=demo/pool --labels=labels.sqlite --annotator=anna
    python -m tools.label --dataset=demo/pool --labels=labels.sqlite --annotator=ben \
        --order=uncertain --scores=scores.parquet --count=500
    python -m tools.label --dataset=demo/pool --labels=labels.sqlite --annotator=carla --adjudicate
    python -m tools.label --dataset=demo/natural --labels=audit.sqlite --annotator=anna --draw=1
    python -m tools.label --labels=labels.sqlite --agreement
    python -m tools.label --labels=labels.sqlite --export=labels.parquet

The same command again goes on where it was. Annotators who work at the same time each start
their own, on the same file; or one server takes several, `--annotator=anna,ben`, and prints a
link for each, which is that person's only. Nobody sees the labels of others, except who decides
with --adjudicate.

Orders: `random` and `audit` draw at random (their labels may calibrate a classifier), with the
same --seed nested and independent of each other; `uncertain` begins with what a classifier is
least sure of, by a Parquet file with the columns key, natural and rendition; `disagreement` with
the images on which annotators differ most. With --exclude=runs/dedup/duplicates.parquet no
duplicate is drawn at random. --draw takes a draw that is in the file, such as a job audit made.

The server answers this machine only. Another --host needs a token, which is made if none is
given; the connection itself is not encrypted, so that an SSH tunnel is the better way.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import waitress
from absl import flags

from clipdg_jax.data import resolve
from clipdg_jax.domains import agreement, exclusion, label_table, labels, orders
from clipdg_jax.domains.labelling import desk, server
from clipdg_jax.errors import UserError
from tools import cli

ORDERS = ("random", "uncertain", "disagreement", "audit")
_AT_RANDOM = {"random": orders.random, "audit": orders.audit}
_DEFAULT_COUNT = 1000


def choose_draw(
    store: labels.Store,
    source: resolve.Source,
    annotators: Sequence[str],
    *,
    order: str,
    count: int | None = None,
    seed: int = 0,
    scores: str | None = None,
    adjudicate: bool = False,
    exclude: orders.Exclude = frozenset(),
) -> int:
    """The draw to work on: the one begun before, or a new one, recorded in the store.

    Args:
        store, source: where labels go, what is labelled.
        annotators: who will work on it.
        order: one of `ORDERS`.
        count: records to draw; None is 1000 or all there are. Disagreements come all.
        seed: of the draw at random.
        scores: Parquet file for the order `uncertain`.
        adjudicate: the undecided disagreements, whatever `order` says.
        exclude: records that are not drawn at random.

    Raises UserError like `orders`, and where `uncertain` has no scores.
    """
    population = orders.allowed(source, exclude)
    n = min(_DEFAULT_COUNT, population) if count is None else count
    if adjudicate:
        items = orders.disagreement(store, source)
        return store.add_draw(source, "disagreement", 0, items)
    if order == "disagreement":
        # New labels change this order: who is in the middle of such a draw goes on with it.
        for begun in reversed(store.draws()):
            if (begun.fingerprint, begun.order) == (source.fingerprint, order):
                progress = [store.progress(begun.id, name) for name in annotators]
                if any(0 < done < total for done, total in progress):
                    return begun.id
        return store.add_draw(source, order, 0, orders.disagreement(store, source))
    if order == "uncertain":
        if scores is None:
            raise UserError("--scores: missing; --order=uncertain needs a classifier's scores")
        return store.add_draw(source, order, 0, orders.uncertain(source, scores, n))
    items = _AT_RANDOM[order](source, n, seed, exclude)
    draw = store.add_draw(source, order, seed, items, population)
    for name in annotators:
        _carry_over(store, draw, name)
    return draw


def _carry_over(store: labels.Store, draw: int, annotator: str) -> None:
    """Takes along the labels of the same draw at another length, where this one has none yet."""
    if store.progress(draw, annotator)[0]:
        return
    origins = {d.id: (d.fingerprint, d.order, d.seed) for d in store.draws()}
    keys = {item.key for item in store.items(draw)}
    found = {
        label.key: label.domain
        for label in store.labels(annotator=annotator)
        if label.key in keys and origins[label.draw] == origins[draw]
    }
    if found:
        store.set_all(annotator, draw, found)


def make_access(annotators: Sequence[str], host: str, token: str | None) -> server.Access:
    """Who may use the server, with a token for each where tokens are needed.

    Several annotators get one each, made from the given one, so that none can pass as another.
    """
    names = tuple(annotators)
    if not names or len(set(names)) != len(names):
        raise UserError("--annotator: give one name, or several different ones with commas")
    if token is None:
        if len(names) == 1 and server.is_loopback(host):
            return server.Access(names, host=host)
        token = secrets.token_urlsafe(16)
    if len(token) < 8:
        raise UserError("--token: is too short; use 8 characters or more, or none to have one made")
    if len(names) == 1:
        return server.Access(names, {names[0]: token}, host)
    tokens = {
        name: hmac.new(token.encode(), name.encode(), hashlib.sha256).hexdigest()[:32]
        for name in names
    }
    return server.Access(names, tokens, host)


def link(access: server.Access, annotator: str, port: int) -> str:
    """The address of an annotator's page."""
    host = f"[{access.host}]" if ":" in access.host else access.host
    token = access.tokens.get(annotator)
    return f"http://{host}:{port}/" + (f"?token={urllib.parse.quote(token)}" if token else "")


def main(argv: Sequence[str]) -> None:
    """Does what the flags ask for: export, agreement, or the page until it is interrupted."""
    del argv
    values = flags.FLAGS
    if values.labels is None:
        raise UserError("--labels: missing; name the file of the labels, such as labels.sqlite")
    if values.export or values.agreement:
        if not Path(values.labels).exists():
            raise UserError(f"{values.labels}: no such file; label some images first")
        with labels.Store(values.labels) as store:
            if values.export:
                table = label_table.export(store, values.export)
                print(f"{values.export}: {len(table)} labels and decisions")
            if values.agreement:
                print(agreement.report(label_table.from_store(store), values.seed)["text"])
        return
    if values.dataset is None:
        raise UserError("--dataset: missing; name a dataset below --data_root, or a path")
    if values.exclude and (values.order not in _AT_RANDOM or values.adjudicate):
        raise UserError("--exclude: only goes with the orders random and audit; leave it out")
    if values.draw is not None and (values.adjudicate or values.exclude):
        raise UserError("--draw: is chosen already; leave out --adjudicate and --exclude")
    access = make_access([n.strip() for n in values.annotator], values.host, values.token)
    source = resolve.resolve(values.dataset, values.data_root)
    with labels.Store(values.labels) as store:
        for name in access.annotators:
            store.set_all(name, 0, {})  # sets nothing, and refuses what is no name
        if values.draw is not None:
            draw = values.draw
        else:
            draw = choose_draw(
                store,
                source,
                access.annotators,
                order=values.order,
                count=values.count,
                seed=values.seed,
                scores=values.scores,
                adjudicate=values.adjudicate,
                exclude=exclusion.read(values.exclude, source) if values.exclude else frozenset(),
            )
        kind = desk.Adjudication if values.adjudicate else desk.Desk
        _serve(kind(store, source, draw), access, values.grid, values.port)


def _serve(work: desk.Desk, access: server.Access, grid: int, port: int) -> None:
    """Serves the page until interrupted; every label is on the disk all the while."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # 25 images at once are normal
    try:
        running = waitress.create_server(
            server.create_app(work, access, grid),
            host=access.host,
            port=port,
            threads=8,
            ident="clipdg_jax",
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"--port: {access.host}:{port} cannot be listened on ({error}); try another port"
        ) from error
    what = "disagreements to decide" if work.adjudicate else f"images in {work.draw.order} order"
    print(f"{work.draw.dataset}: {len(work)} {what}; labels go to {work.store.path}")
    for name in access.annotators:
        done = len(work) - work.letters(name).count(desk.NONE)
        print(f"{name} ({done} of {len(work)} done): {link(access, name, running.effective_port)}")
    print("Ctrl-C ends the server; every label is saved as it is set.", flush=True)
    running.run()


if __name__ == "__main__":
    flags.DEFINE_string("data_root", "data", "Where datasets live that are given by name.")
    flags.DEFINE_string("dataset", None, "What to label: a name below --data_root, or a path.")
    flags.DEFINE_string("labels", None, "SQLite file of the labels; made where there is none.")
    flags.DEFINE_list("annotator", [], "Who labels: one name, or several with commas.")
    flags.DEFINE_enum("order", "random", ORDERS, "Which images, in which order.")
    flags.DEFINE_integer(
        "count", None, f"Images to draw; {_DEFAULT_COUNT} or all if not given.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Of the draw, and of the intervals of --agreement.")
    flags.DEFINE_string("scores", None, "Parquet file with key, natural, rendition.")
    flags.DEFINE_string("exclude", None, "Parquet of keys that are not drawn at random.")
    flags.DEFINE_integer("draw", None, "A draw of the file, by its number.", lower_bound=1)
    flags.DEFINE_integer("grid", 5, "Images a side of the page.", lower_bound=1, upper_bound=12)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; beyond loopback with tokens.")
    flags.DEFINE_integer("port", 8640, "Port to listen on; 0 takes a free one.", lower_bound=0)
    flags.DEFINE_string("token", None, "Secret that the links carry; made where one is needed.")
    flags.DEFINE_string("export", None, "Write all labels to this Parquet file, and end.")
    flags.DEFINE_bool("agreement", False, "Print how far annotators agree, and end.")
    flags.DEFINE_bool("adjudicate", False, "Show disagreements with all labels, to decide.")
    cli.run(main)
