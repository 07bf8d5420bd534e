"""The SQLite file of a label store: its tables, and how it is opened, read and written safely."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from clipdg_jax.errors import UserError

_APPLICATION = 0x636C6470  # "cldp", which marks the file as ours
_FORMAT = 1
_WAIT = 30.0  # seconds to wait for another process's transaction

_TABLES = """
CREATE TABLE draws (
    id INTEGER PRIMARY KEY, dataset TEXT NOT NULL, fingerprint TEXT NOT NULL,
    "order" TEXT NOT NULL, seed INTEGER NOT NULL, population INTEGER NOT NULL,
    items TEXT NOT NULL, time REAL NOT NULL,
    UNIQUE (fingerprint, "order", seed, items));
CREATE TABLE items (
    draw INTEGER NOT NULL REFERENCES draws, position INTEGER NOT NULL, key TEXT NOT NULL,
    record INTEGER NOT NULL, probability REAL,
    PRIMARY KEY (draw, key), UNIQUE (draw, position)) WITHOUT ROWID;
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, annotator TEXT NOT NULL, draw INTEGER NOT NULL,
    key TEXT NOT NULL, domain TEXT, time REAL NOT NULL, undone INTEGER NOT NULL DEFAULT 0,
    FOREIGN KEY (draw, key) REFERENCES items (draw, key));
CREATE INDEX changes_of ON changes (draw, annotator, key, id, undone);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, adjudicator TEXT NOT NULL, draw INTEGER NOT NULL,
    key TEXT NOT NULL, domain TEXT, time REAL NOT NULL,
    FOREIGN KEY (draw, key) REFERENCES items (draw, key));
CREATE TRIGGER changes_stay BEFORE DELETE ON changes
    BEGIN SELECT RAISE(ABORT, 'labels are never deleted'); END;
CREATE TRIGGER changes_are_final BEFORE UPDATE OF id, annotator, draw, key, domain, time ON changes
    BEGIN SELECT RAISE(ABORT, 'labels are never rewritten'); END;
CREATE TRIGGER decisions_stay BEFORE DELETE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER decisions_are_final BEFORE UPDATE ON decisions
    BEGIN SELECT RAISE(ABORT, 'decisions are never rewritten'); END;
CREATE VIEW labels AS
    SELECT * FROM changes AS c WHERE domain IS NOT NULL AND id = (
        SELECT MAX(id) FROM changes WHERE NOT undone
        AND draw = c.draw AND annotator = c.annotator AND key = c.key);
CREATE VIEW adjudications AS
    SELECT * FROM decisions WHERE domain IS NOT NULL AND id IN
        (SELECT MAX(decisions.id) FROM decisions JOIN draws ON draws.id = draw
         GROUP BY fingerprint, key);
"""

# What to do about an error of SQLite, by the start of its name.
_ADVICE = {
    "NOTADB": "it is not a label store; give the name of one or of a new file",
    "CORRUPT": "it is damaged; restore a copy, or save what `sqlite3 <file> .recover` finds",
    "BUSY": "another program holds it; end that or try again",
    "LOCKED": "another program holds it; end that or try again",
    "FULL": "free some space on its disk, then try again",
    "IOERR": "its disk refuses; check it and the space left",
    "CANTOPEN": "give the name of a file in a directory that can be written",
    "READONLY": "make it and its directory writable",
    "PERM": "make it and its directory writable",
    "AUTH": "make it and its directory writable",
}


class LabelFile:
    """The file, open; made where there is none.

    Safe for several threads, and for several processes that each open their own. SQLite's errors
    about the file, whenever they occur, are UserErrors: it is damaged, another program's, locked
    for long, on a full disk, or may not be written.
    """

    def __init__(self, path: Path):
        self.path = path
        # One connection behind a lock: SQLite admits one writer at a time anyway.
        self._lock = threading.RLock()
        if not path.parent.is_dir():
            raise UserError(f"{path}: its directory does not exist; create it first")
        with self._told():
            self._connection = sqlite3.connect(
                path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Closes the file; nothing is pending, since every write was committed."""
        with self._lock:
            self._connection.close()

    def rows(self, query: str, *values: object) -> list[tuple]:
        """All rows of a query."""
        with self._lock, self._told():
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes inside are on the disk together when the block ends, or not at all."""
        with self._lock, self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        """Recognises the file, or makes an empty one into a store."""
        connection = self._connection
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        self._recognise()  # before the first write: a foreign file is left as it is
        deadline = time.monotonic() + _WAIT
        while True:  # the change of mode does not wait by itself for others that make it
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        with self.transaction():
            if not self._recognise():
                for statement in _statements(_TABLES):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_FORMAT}")
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)

    def _recognise(self) -> bool:
        """Whether the file is a store; False where it is still empty. UserError on others."""
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application == _APPLICATION:
            if version != _FORMAT:
                raise UserError(
                    f"{self.path}: has format {version}; this version reads format {_FORMAT}"
                )
            return True
        if self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise UserError(
                f"{self.path}: is another program's SQLite file, not a label store; give the "
                "name of a label store or of a new file"
            )
        return False

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns SQLite's errors about the file into one line each."""
        try:
            yield
        except (OverflowError, UnicodeEncodeError) as error:
            raise UserError(
                f"{self.path}: cannot hold such a value ({error}); give a key and a draw of its own"
            ) from error
        except sqlite3.DatabaseError as error:
            # Errors that Python raises itself (a closed file) have no name, and are no user's.
            bare = "SQLITE_CORRUPT" if type(error) is sqlite3.DatabaseError else ""
            name = getattr(error, "sqlite_errorname", bare).removeprefix("SQLITE_")
            what = " ".join(str(error).split())
            for start, advice in _ADVICE.items():
                if name.startswith(start):
                    raise UserError(f"{self.path}: {what}; {advice}") from error
            raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
