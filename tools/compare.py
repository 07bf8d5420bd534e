"""Compares two models image by image: accuracies, their difference, its paired bootstrap interval.

    python -m tools.compare runs/a/predictions-500.parquet runs/b/predictions-500.parquet

The files are those that the job evaluate writes. A difference is the second's accuracy less the
first's, in points, with the 95 % interval of 10 000 resamples of the images.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import paired, tables
from tools import cli


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    if len(argv) != 3:
        raise UserError("give two files of predictions; see --help")
    head = ("test set", "images", "first %", "second %", "difference", "95 % interval")
    rows = [
        (
            c.test_set,
            str(c.n),
            f"{100 * c.first:.1f}",
            f"{100 * c.second:.1f}",
            f"{100 * c.difference:+.2f}",
            f"{100 * c.low:+.2f} - {100 * c.high:+.2f}",
        )
        for c in paired.compare(*argv[1:])
    ]
    print(tables.aligned(head, rows))


if __name__ == "__main__":
    cli.run(main, positional=2)
