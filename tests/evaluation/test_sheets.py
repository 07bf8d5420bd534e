import numpy as np

from clipdg_jax.evaluation import sheets


def solid(value, shape=(10, 10)):
    return np.broadcast_to(np.array([value, 200, 10], np.uint8), (*shape, 3))


def of_colour(pixels, value):
    return (pixels == [value, 200, 10]).all(axis=2)


def test_cells_lie_in_rows_below_their_heading_and_in_their_frames():
    cells = [sheets.Cell(solid(50 + i), f"number {i}", "#ff0000") for i in range(5)]
    page = sheets.draw(
        [sheets.Section("first", cells), sheets.Section("", cells[:1])], 3, cell=40, title="title"
    )
    pixels = np.asarray(page)
    corners = []
    for i in range(5):
        y, x = np.argwhere(of_colour(pixels, 50 + i))[0]
        corners.append((y, x))
        assert (pixels[y - 1, x - 1] == [255, 0, 0]).all()
    rows = [y for y, _ in corners]
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert [x for _, x in corners[:2]] == [x for _, x in corners[3:]]
    assert of_colour(pixels, 50).sum() == 2 * 100  # in both sections, not enlarged


def test_a_large_image_is_made_to_fit_and_an_empty_place_has_its_text():
    cells = [sheets.Cell(solid(70, (300, 150))), sheets.Cell(None, "no such image")]
    pixels = np.asarray(sheets.draw([sheets.Section("", cells)], 2, cell=60))
    rows, columns = np.nonzero(of_colour(pixels, 70))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (60, 30)
    assert (pixels[70:, 72:] < 100).any()


def test_text_that_is_too_long_is_cut_off_within_its_place():
    long = sheets.Cell(None, "some words " * 60)
    page = np.asarray(sheets.draw([sheets.Section("", [long, sheets.Cell(None)])], 2, cell=100))
    dark = (page < 200).all(axis=2)
    assert dark[:, :106].any()
    assert not dark[:, 106:].any()


def test_pages_are_a_little_wider_than_high():
    assert [sheets.columns_for(n) for n in (0, 1, 10, 40)] == [1, 1, 4, 8]
