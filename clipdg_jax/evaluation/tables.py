"""Tables for terminals, logs and Markdown; zero-shot results as one."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipdg_jax.evaluation import stats, zero_shot


def format_table(results: zero_shot.Results) -> str:
    """An aligned table: test set, domain, images, top-1 in percent with its 95 % interval, chance.

    Intervals are Wilson's, over the images. Records left out are named below the table, and each
    domain's mean over test sets closes each suite.
    """
    head = ("test set", "domain", "images", "top-1 %", "95 % interval", "chance %")
    rows: list[Sequence[str]] = []
    notes = []
    for suite, test_sets in results.items():
        for name, measures in test_sets.items():
            rows.append(_row(f"{suite}/{name}", measures))
            for reason in ("invalid", "unlabelled"):
                if measures[reason]:
                    notes.append(f"{suite}/{name}: left out {measures[reason]} {reason} records")
        for domain, mean in zero_shot.summary({suite: test_sets})[suite].items():
            rows.append((f"{suite} mean", domain, "", f"{100 * mean:.1f}", "", ""))
    return "\n".join([aligned(head, rows, names=2), *notes])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Columns of text: the first `names` flush left, the others, which are numbers, right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(_align(row, widths, names) for row in (head, rule, *rows))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """The same as a Markdown table. A "|" within a cell is escaped."""
    rule = ["---" if i < names else "---:" for i in range(len(head))]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:]))


def _row(name: str, measures: Mapping[str, Any]) -> tuple[str, ...]:
    n = measures["n"]
    low, high = stats.wilson_interval(round(measures["top1"] * n), n)
    return (
        name,
        measures["domain"],
        str(n),
        f"{100 * measures['top1']:.1f}",
        f"{100 * low:.1f} - {100 * high:.1f}",
        f"{100 * measures['chance']:.1f}",
    )


def _align(row: Sequence[str], widths: Sequence[int], names: int) -> str:
    cells = [
        cell.ljust(width) if i < names else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
