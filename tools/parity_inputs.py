"""What `tools.parity` compares on: captions and image files of every awkward kind, seeded."""

from __future__ import annotations

import io
import random
import unicodedata
from collections.abc import Iterator

import numpy as np
from PIL import Image

# Words of captions, plain and not: cut, joined and cased at random by `captions`.
_PARTS = (
    *("a photo of a cat", "it's the dog's 3rd bone", "they'll've 'S 'RE", "100% off!!! $$$ <<>>"),
    *("naïve mojibake â€œquotedâ€\x9d", "schÃ¶n", "Ã©tÃ©", "â€”", "Â£20", "ï»¿"),
    *("&amp;lt;b&amp;gt;", "&eacute;", "&#39;", "&#x1F600;", "&nbsp;", "&notanentity;", "&amp;"),
    *("😀", "👨\u200d👩\u200d👧", "🏳️‍🌈", "👍🏽", "☃️"),
    *("你好世界", "日本語のキャプション", "カタカナ", "한국어", "ﾊﾝｶｸ", "中文 photo"),
    *("مرحبا بالعالم", "क्ष हिन्दी", "ไทย", "Ελληνικά", "Русский", "עברית"),
    *("tabs\tand\nnewlines\r\n", "\u00a0nbsp\u2003em\u200bzw\x85nel", "   ", "\x00\x07ctrl\x7f"),
    *("İstanbul", "straße SS ſt 'ſ", "e\u0301 soft\u00adhyphen", "ＦＵＬＬ width ﬁligature"),
    *("²½Ⅷ 12345", "it’s curly ‘q’", "_under__score_", "\ufffd\ufeff", "IMG_1234.JPG"),
    *("http://x.y/z?a=b&c=d", "<start_of_text>", "<end_of_text>", "women's T-shirt"),
)
_RANGES = (
    *((32, 126), (160, 0x24F), (0x370, 0x5FF), (0x900, 0xDFF), (0x2000, 0x2FFF)),
    *((0x3040, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F)),
)


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions: splices of odd parts, random characters, 400 words, empty ones."""
    rng = random.Random(seed)
    return [_caption(rng) for _ in range(count)]


def _caption(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.02:
        return ""
    if kind < 0.05:
        return " ".join(rng.choice(_PARTS) for _ in range(400))
    if kind < 0.30:
        # Whether a code point without meaning is a letter depends on the library's Unicode release.
        drawn = (chr(rng.randint(*rng.choice(_RANGES))) for _ in range(rng.randint(1, 40)))
        return "".join(c for c in drawn if unicodedata.category(c) != "Cn")
    text = rng.choice(("", " ")).join(rng.choice(_PARTS) for _ in range(rng.randint(1, 8)))
    if kind < 0.40:  # broken once more, as by a second wrong decoding
        text = text.encode("utf-8").decode("cp1252", errors="replace")
    return rng.choice((str, str.upper, str.title, str.swapcase))(text)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: smooth areas, noise and hard edges, where bicubic overshoots."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 4] = rng.integers(0, 256, (height // 4, width, 3), np.uint8)
    pixels[height // 4 : height // 2, ::3] = 255
    pixels[height // 2 : height // 2 + height // 8] = 0
    return pixels


def image_files() -> Iterator[tuple[str, bytes]]:
    """(what it is, an encoded file): photos of all aspect ratios, and every mode and format."""
    sizes: tuple[tuple[int, int], ...] = (
        (480, 640),
        (640, 480),
        (224, 224),
        (225, 223),
        (100, 900),
        (900, 100),
        (64, 64),
    )
    sizes += ((37, 411), (1080, 1920), (223, 224), (1500, 1501), (8, 8))
    for i, (height, width) in enumerate(sizes):
        pixels = Image.fromarray(picture(height, width, i))
        yield f"JPEG {width}x{height}", _file(pixels, "JPEG", quality=90)
        yield f"PNG {width}x{height}", _file(pixels, "PNG")
    photo = Image.fromarray(picture(300, 400, 99))
    yield "greyscale JPEG", _file(photo.convert("L"), "JPEG")
    yield "CMYK JPEG", _file(photo.convert("CMYK"), "JPEG")
    yield "progressive JPEG, 4:2:0", _file(photo, "JPEG", progressive=True, subsampling="4:2:0")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "EXIF-rotated JPEG", _file(photo, "JPEG", exif=exif)
    yield "palette PNG", _file(photo.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    yield "palette PNG, transparent", _file(photo.convert("P"), "PNG", transparency=3)
    yield "RGBA PNG", _file(photo.convert("RGBA"), "PNG")
    yield "greyscale PNG with alpha", _file(photo.convert("LA"), "PNG")
    yield "one-bit PNG", _file(photo.convert("1"), "PNG")
    deep = np.random.default_rng(5).integers(0, 1 << 16, (300, 400), np.uint16)
    yield "16-bit PNG", _file(Image.fromarray(deep), "PNG")
    others = [Image.fromarray(picture(300, 400, seed)) for seed in (7, 8)]
    yield "animated GIF", _file(photo, "GIF", save_all=True, append_images=others)
    yield "animated WebP", _file(photo, "WEBP", save_all=True, append_images=others)
    yield "WebP", _file(photo, "WEBP", quality=80)
    yield "BMP", _file(photo, "BMP")
    yield "TIFF", _file(photo, "TIFF")


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
