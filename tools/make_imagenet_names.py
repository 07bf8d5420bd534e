"""Write the names of ImageNet's classes and CLIP's 80 prompts from packages that carry them.

    python -m tools.make_imagenet_names

OpenAI's names and templates travel in the wheel of `open_clip_torch` (MIT licence), the WordNet ids
in that of `timm` (Apache 2.0). This takes both wheels with pip into a temporary folder and writes
`clipdg_jax/data/assets/imagenet_classes.tsv` and `openai_templates.txt`. The names are read off the
syntax tree: nothing of the packages is installed or run.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

ASSETS = pathlib.Path(__file__).parents[1] / "clipdg_jax" / "data" / "assets"
METADATA = "open_clip/zero_shot_metadata.py"
SYNSETS = "timm/data/_info/imagenet_synsets.txt"


def member(package: str, name: str) -> str:
    """The text of one file of a package's newest wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, package], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name).decode()


def assigned(source: str, name: str) -> ast.expr:
    """What a module assigns to `name`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return node.value
    raise SystemExit(f"{METADATA}: assigns nothing to {name}")


def templates(value: ast.expr) -> Iterator[str]:
    """The f-strings of lambdas such as `lambda c: f'a photo of a {c}.'`, with {} for the name."""
    for function in getattr(value, "elts", []):
        parts = function.body.values
        yield "".join("{}" if isinstance(p, ast.FormattedValue) else p.value for p in parts)


def main() -> None:
    metadata = member("open_clip_torch", METADATA)
    names = ast.literal_eval(assigned(metadata, "IMAGENET_CLASSNAMES"))
    ids = member("timm", SYNSETS).split()
    prompts = list(templates(assigned(metadata, "OPENAI_IMAGENET_TEMPLATES")))
    if (len(names), len(ids), len(prompts)) != (1000, 1000, 80) or ids != sorted(set(ids)):
        raise SystemExit(f"{len(names)} names, {len(ids)} ids and {len(prompts)} templates")
    lines = [f"{identity}\t{name}\n" for identity, name in zip(ids, names, strict=True)]
    (ASSETS / "imagenet_classes.tsv").write_text("".join(lines))
    (ASSETS / "openai_templates.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    print(f"{ASSETS}: {len(lines)} classes, {len(prompts)} templates")


if __name__ == "__main__":
    main()
