"""Write the tokeniser's vocabulary asset from the `open_clip_torch` package.

    python -m tools.make_vocabulary

CLIP's byte-pair merges (MIT licence, OpenAI) travel in the wheel of `open_clip_torch`. This takes
the wheel with pip into a temporary folder, keeps the 48 894 merges that CLIP's 49 408 ids use (the
file lists more than five times as many), and writes `clipdg_jax/data/assets/clip_merges.txt.gz`,
with the same bytes every time. Nothing is installed and torch is not needed.
"""

from __future__ import annotations

import gzip
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ASSET = pathlib.Path(__file__).parents[1] / "clipdg_jax" / "data" / "assets" / "clip_merges.txt.gz"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49408 - 512 - 2  # ids less single bytes, within and at the end of words, and SOT, EOT


def kept_merges(vocabulary: str) -> list[str]:
    """The merges of the file's text that CLIP uses: those after its one header line."""
    merges = vocabulary.split("\n")[1 : MERGES + 1]
    if len(merges) != MERGES or any(len(merge.split(" ")) != 2 for merge in merges):
        raise SystemExit(f"{MEMBER}: not {MERGES} lines of two words after the first line")
    return merges


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, "open_clip_torch"], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            vocabulary = gzip.decompress(archive.read(MEMBER)).decode()
    text = "\n".join(kept_merges(vocabulary)) + "\n"
    ASSET.parent.mkdir(exist_ok=True)
    ASSET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{ASSET}: {MERGES} merges, {ASSET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
