"""What the curation's page shows besides text and tables: bars, histograms, galleries of images."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from clipdg_jax.domains import calibration
from clipdg_jax.evaluation import page, plots

COLOURS = {**plots.COLOURS, "conflict": "#CC79A7"}  # of the same palette
_THUMBNAIL, _QUALITY = 128, 85  # side in pixels, and JPEG's quality


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of a bar: its name, which has a colour, its share of 1, and the text beside it."""

    name: str
    share: float
    text: str


def bar(title: str, shares: Sequence[Share]) -> str:
    """One bar of shares, with what they are below it."""
    parts = "".join(
        f'<span style="width:{100 * s.share:.3f}%;background:{COLOURS[s.name]}"></span>'
        for s in shares
    )
    key = "".join(
        f'<span><i style="background:{COLOURS[s.name]}"></i>{html.escape(f"{s.name} {s.text}")}'
        "</span>"
        for s in shares
    )
    return (
        f"<div class=set>{page.heading(title, 3)}<div class=bar>{parts}</div>"
        f"<div class=key>{key}</div></div>"
    )


def histogram(
    counts: Int[np.ndarray, "decisions bins"], threshold: float, title: str, about: str
) -> str:
    """Scores of one decider as SVG: bars by decision over [0, 1], heights by logarithm.

    Within a bar, the decisions divide its height by their share of the images.

    Args:
      counts: images by decision and bin.
      threshold: marked; infinity is not.
      title: above it.
      about: what it shows, for those who cannot see it.
    """
    width, height, left, bottom, top = 360, 200, 38, 24, 26
    totals = counts.sum(axis=0)
    peak = math.ceil(math.log10(max(10, int(totals.max()) + 1)))
    across, up = width - left - 10, height - bottom - top
    step = across / counts.shape[1]

    def y(value: float) -> float:
        return height - bottom - up * math.log10(1 + value) / peak

    parts = [
        f'<text x="{left}" y="15" font-size="13" font-weight="600">{html.escape(title)}</text>'
    ]
    for power in range(peak + 1):
        at = y(10**power - 1) if power else height - bottom
        label = "0" if power == 0 else f"{10**power:,}" if power < 5 else f"1e{power}"
        parts.append(f'<path d="M{left} {at:.1f}H{width - 10}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 4}" y="{at + 4:.1f}" text-anchor="end" font-size="10">{label}</text>'
        )
    for place in range(counts.shape[1]):
        if not totals[place]:
            continue
        tall = height - bottom - y(float(totals[place]))
        base = float(height - bottom)
        for name, count in zip(calibration.DECISIONS, counts[:, place].tolist(), strict=True):
            part = tall * count / int(totals[place])
            if count:
                parts.append(
                    f'<rect x="{left + place * step:.2f}" y="{base - part:.2f}" '
                    f'width="{step * 0.92:.2f}" height="{part:.2f}" fill="{COLOURS[name]}"/>'
                )
            base -= part
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<text x="{left + across * tick:.1f}" y="{height - 8}" text-anchor="middle" '
            f'font-size="10">{tick:g}</text>'
        )
    if math.isfinite(threshold):
        at = left + across * threshold
        parts.append(
            f'<path d="M{at:.1f} {top - 4}V{height - bottom}" stroke="#000" stroke-width="1.2" '
            'stroke-dasharray="4 2"/>'
        )
        beside, anchor = (at - 4, "end") if threshold > 0.5 else (at + 4, "start")
        parts.append(
            f'<text x="{beside:.1f}" y="{top + 6}" text-anchor="{anchor}" font-size="10">'
            f"threshold {threshold:.4f}</text>"
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(about)}" '
        f'font-family="system-ui, sans-serif" fill="#222">{"".join(parts)}</svg>'
    )


def gallery(pictures: Sequence[tuple[UInt8[np.ndarray, "h w 3"], str, str]]) -> str:
    """Images with a line of text below each: (image, text, name whose colour frames it)."""
    cells = (
        f'<figure><img src="{data_uri(image)}" alt="{html.escape(text)}" '
        f'style="border-color:{COLOURS.get(frame, "transparent")}">{html.escape(text)}</figure>'
        for image, text, frame in pictures
    )
    return f"<div class=gallery>{''.join(cells)}</div>"


def data_uri(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A small JPEG of the image; never enlarged."""
    scale = min(1.0, _THUMBNAIL / max(image.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    done, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"cannot encode an image of shape {small.shape}")
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
