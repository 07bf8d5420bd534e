"""The study's cells and its table."""

import pytest

from tools import study


def _results(natural: float, sketch: float, cartoon: float, mosaic: float) -> dict:
    def test_set(domain, top1):
        return {"domain": domain, "top1": top1, "n": 100}

    return {
        "zero_shot": {
            "demo": {
                "natural": test_set("natural", natural),
                "sketch": test_set("rendition", sketch),
                "cartoon": test_set("rendition", cartoon),
            },
            "demo_heldout": {"mosaic": test_set("rendition", mosaic)},
        }
    }


def test_cells_cover_mixes_seeds_and_correlations():
    cells = study.cells(seeds=3)
    assert len(cells) == len({cell.name for cell in cells}) == 13
    main = [c for c in cells if c.correlation == study.DEFAULT_CORRELATION]
    assert {(c.mix, c.seed) for c in main} == {(m, s) for m in study.MIXES for s in range(3)}
    assert {c.correlation for c in cells} == set(study.CORRELATIONS)


def test_rows_average_styles_and_tables_average_seeds():
    rows = [
        study.row_values(_results(0.9, 0.2, 0.4, 0.1)),
        study.row_values(_results(0.8, 0.4, 0.6, 0.3)),
    ]
    assert rows[0]["renditions"] == pytest.approx(0.3)
    assert rows[0]["mosaic (held out)"] == 0.1
    lines = study.table({"mix": rows, "one seed": rows[:1]}).splitlines()
    assert (
        lines[0] == "| trained on | natural | renditions | sketch | cartoon | mosaic (held out) |"
    )
    # Standard error of two values: half their difference.
    assert lines[2].startswith("| mix | 85.0 ± 5.0 | 40.0 ± 10.0 | 30.0 ± 10.0 |")
    assert lines[3].startswith("| one seed | 90.0 | 30.0 | 20.0 |")
