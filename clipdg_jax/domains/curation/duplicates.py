"""The drop list of deduplication, as curation reads it: which rows of which shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import files
from clipdg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """A `duplicates.parquet`, sorted by shard, of which one shard's rows are read at a time.

    Attributes:
        path: of the file; None for no duplicates at all.
        digest: sha256 (hex) of the file.
    """

    path: Path | None
    digest: str = ""

    @classmethod
    def open(cls, path: str | Path, fingerprint: str) -> Duplicates:
        """The drop list at `path`, or an empty one where that is "".

        Args:
            path: of the file.
            fingerprint: of the pool.

        Raises UserError where there is none, or it is another pool's.
        """
        if not path:
            return cls(None)
        path = Path(path)
        try:
            told = pq.read_schema(path)
        except FileNotFoundError:
            raise UserError(
                f"{path}: does not exist; make it with `python -m clipdg_jax.main "
                "--config=configs/dedup.py`, or set config.duplicates to nothing"
            ) from None
        except (OSError, pa.ArrowException) as error:
            what = " ".join(str(error).split())
            raise UserError(
                f"{path}: is no Parquet file that can be read ({what}); run deduplication again"
            ) from error
        missing = {"shard", "row", "key"} - set(told.names)
        if missing:
            raise UserError(
                f"{path}: has no column {sorted(missing)[0]!r}; config.duplicates is the "
                "duplicates.parquet of a run of configs/dedup.py"
            )
        of = (told.metadata or {}).get(b"pool", b"").decode()
        if of and of != fingerprint:
            raise UserError(
                f"{path}: lists duplicates of another pool ({of[:16]}, not {fingerprint[:16]}); "
                "deduplicate this one"
            )
        return cls(path, files.sha256(path))

    def of(self, index: int) -> Mapping[int, str]:
        """Row -> key of the duplicates in shard `index`, by rising row."""
        if self.path is None:
            return {}
        try:
            found = pq.read_table(
                self.path, columns=["row", "key"], filters=[("shard", "==", index)]
            )
        except (OSError, pa.ArrowException) as error:
            what = " ".join(str(error).split())
            raise UserError(f"{self.path}: is damaged ({what}); run deduplication again") from error
        rows, keys = (found.column(name).to_pylist() for name in ("row", "key"))
        return dict(sorted(zip(rows, keys, strict=True)))
