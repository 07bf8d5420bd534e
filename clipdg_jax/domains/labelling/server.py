"""The labelling page's server: a few routes over a `desk.Desk`, for a browser on this machine.

What it holds on to:

- A label is answered for only after the store has committed it.
- Requests name positions of one draw, never files: the page's own three files are read at start,
  and images come from the dataset through the draw's items.
- Without tokens it answers to loopback names only (a page elsewhere cannot reach it by pointing
  its own name at 127.0.0.1), and writes only what is JSON and of the same origin.
- With tokens every request must carry one, and a token is one annotator's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import importlib.resources
import ipaddress
from collections.abc import Mapping

import flask
import werkzeug.exceptions

from clipdg_jax.data import schema
from clipdg_jax.domains.labelling import desk as desks
from clipdg_jax.errors import UserError

_STATIC = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LARGEST_REQUEST = 16_384  # bytes


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        annotators: whose labels it takes.
        tokens: per annotator the secret that every request must carry; empty: no secret, which is
            for one annotator on loopback only.
        host: the address it listens on.
    """

    annotators: tuple[str, ...]
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.tokens:
            if set(self.tokens) != set(self.annotators):
                raise ValueError("each annotator needs a token")
        elif len(self.annotators) != 1 or not is_loopback(self.host):
            raise ValueError("several annotators, or another host than loopback, need tokens")

    @property
    def cookie(self) -> str:
        """The cookie's name, the server's own: cookies do not tell ports apart."""
        joined = "\0".join(self.tokens[name] for name in self.annotators)
        return f"label_{hashlib.sha256(joined.encode()).hexdigest()[:8]}"

    def owner(self, token: str) -> str | None:
        """Whose token this is; takes as long for a wrong one as for a right one."""
        given = token.encode()
        found = None
        for name, own in self.tokens.items():
            if hmac.compare_digest(given, own.encode()):
                found = name
        return found


def create_app(desk: desks.Desk, access: Access, grid: int = 5) -> flask.Flask:
    """The page and its interface as a WSGI application.

    Routes: `/` and `/static/<file>` the page; `/api/state` the draw and the caller's labels;
    `/image/<tag>/<position>` an image; POST `/api/label` and `/api/undo`. Errors are JSON with
    one line, `error`: 400 what was sent makes no sense, 401 no token, 403 another annotator or
    another site, 404 no such thing, 409 the page belongs to another draw, 415 not JSON or not an
    image, 503 the store could not write (to be tried again).

    Args:
        desk: the draw and what is done with it.
        access: who may.
        grid: images a side of the page, to begin with.
    """
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _LARGEST_REQUEST
    folder = importlib.resources.files(__package__) / "static"
    pages = {name: (folder / name).read_bytes() for name in _STATIC}

    @app.before_request
    def guard() -> flask.typing.ResponseReturnValue | None:
        if is_loopback(access.host) and not _is_local_name(flask.request.host):
            flask.abort(403, "this server answers to 127.0.0.1 and localhost only")
        if access.tokens:
            given = flask.request.args.get("token")
            if given is not None and flask.request.path == "/" and access.owner(given):
                response = flask.redirect("/", 303)
                response.set_cookie(access.cookie, given, httponly=True, samesite="Lax")
                return response
            if access.owner(flask.request.cookies.get(access.cookie, "")) is None:
                flask.abort(401, "open the page by the link with your token")
        if flask.request.method == "POST":
            if flask.request.mimetype != "application/json":
                flask.abort(415, "send JSON, with that content type")
            origin = flask.request.headers.get("Origin", flask.request.host_url.rstrip("/"))
            site = flask.request.headers.get("Sec-Fetch-Site", "same-origin")
            if origin != flask.request.host_url.rstrip("/") or site != "same-origin":
                flask.abort(403, "another site may not write here")
        return None

    @app.after_request
    def protect(response: flask.Response) -> flask.Response:
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(werkzeug.exceptions.HTTPException)
    def tell(error: werkzeug.exceptions.HTTPException) -> flask.typing.ResponseReturnValue:
        return {"error": error.description}, error.code or 500

    @app.errorhandler(UserError)
    def refuse(error: UserError) -> flask.typing.ResponseReturnValue:
        # What callers can get wrong is checked before: this is the file or its disk.
        return {"error": str(error)}, 503

    def caller() -> str:
        if not access.tokens:
            return access.annotators[0]
        owner = access.owner(flask.request.cookies[access.cookie])
        assert owner is not None  # the guard has seen to it
        return owner

    def sent() -> tuple[str, dict]:
        """The annotator and the fields of a POST, both checked."""
        fields = flask.request.get_json()
        if not isinstance(fields, dict):
            flask.abort(400, "send a JSON object")
        if fields.get("annotator") != caller():
            flask.abort(403, f"annotator: only labels of {caller()} can be changed from here")
        if fields.get("draw") != desk.tag:
            flask.abort(409, "draw: this page belongs to another draw; load it again")
        return caller(), fields

    @app.get("/")
    def index() -> flask.typing.ResponseReturnValue:
        return flask.Response(pages["index.html"], content_type=_STATIC["index.html"])

    @app.get("/favicon.ico")
    def icon() -> flask.typing.ResponseReturnValue:
        return "", 204

    @app.get("/static/<name>")
    def static(name: str) -> flask.typing.ResponseReturnValue:
        if name not in pages:
            flask.abort(404, "no such page")
        response = flask.Response(pages[name], content_type=_STATIC[name])
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/api/state")
    def state() -> flask.typing.ResponseReturnValue:
        asked = flask.request.args.get("annotator", caller())
        if asked != caller():
            flask.abort(403, f"annotator: only labels of {caller()} can be seen from here")
        return {
            "draw": desk.tag,
            "dataset": desk.draw.dataset,
            "order": desk.draw.order,
            "annotator": caller(),
            "adjudicate": desk.adjudicate,
            "grid": grid,
            "labels": desk.letters(caller()),
            "votes": desk.votes(),
        }

    @app.get("/image/<tag>/<int:position>")
    def image(tag: str, position: int) -> flask.typing.ResponseReturnValue:
        if tag != desk.tag or position >= len(desk):
            flask.abort(404, "no such image in this draw")
        try:
            data, kind = desk.image(position)
        except desks.NoImageError as error:
            flask.abort(415, str(error))
        response = flask.Response(data, content_type=kind)
        # The tag stands for the content: what is at this address never changes.
        response.headers["Cache-Control"] = "private, max-age=86400, immutable"
        return response

    @app.post("/api/label")
    def label() -> flask.typing.ResponseReturnValue:
        annotator, fields = sent()
        position, domain = fields.get("position"), fields.get("domain")
        if type(position) is not int or not 0 <= position < len(desk):
            flask.abort(404, f"position: {position!r} is not in this draw; 0 to {len(desk) - 1}")
        if domain is not None and domain not in schema.DOMAINS:
            flask.abort(400, f"domain: {domain!r}; one of {', '.join(schema.DOMAINS)}, or null")
        desk.set(annotator, position, domain)
        return {"position": position, "domain": domain}

    @app.post("/api/undo")
    def undo() -> flask.typing.ResponseReturnValue:
        annotator, _ = sent()
        undone = desk.undo(annotator)
        position, domain = undone or (None, None)
        return {"position": position, "domain": domain}

    return app


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine's loopback, with or without a port."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdigit():
        name = host
    return name in ("localhost", "127.0.0.1", "[::1]")
