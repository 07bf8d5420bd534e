"""The suites that come with the package: where their test sets are looked for, and their prompts.

Each is a document as in `suite.json` (see `suites`). A test set may be our own dataset, prepared
TFDS data, or the folder that it is distributed as; the first that is there is taken. Clean versions
are suites like any other, which the job curate writes.
"""

from __future__ import annotations

from typing import Any


def _imagenet(name: str, domain: str, *places: str) -> dict[str, Any]:
    return {"dataset": [name, *places], "domain": domain, "classnames": "imagenet"}


def _domainnet(name: str, domain: str) -> dict[str, Any]:
    places = [f"domainnet/{name}", f"tfds:domainnet/{name}:test"]
    places.append(f"folder:domainnet:domainnet/{name}")
    return {"dataset": places, "domain": domain, "classnames": "words"}


SUITES: dict[str, dict[str, Any]] = {
    "imagenet": {
        "templates": "openai",
        "test_sets": {
            "imagenet_val": _imagenet(
                "imagenet_val",
                "natural",
                "tfds:imagenet2012:validation",
                "folder:imagenet:imagenet/val",
                "folder:imagenet:ILSVRC2012_img_val",
            ),
            "imagenet_v2": _imagenet(
                "imagenet_v2",
                "natural",
                "tfds:imagenet_v2/matched-frequency:test",
                "folder:numbered:imagenetv2-matched-frequency-format-val",
            ),
            "imagenet_a": _imagenet(
                "imagenet_a", "natural", "tfds:imagenet_a:test", "folder:imagenet:imagenet-a"
            ),
            "imagenet_r": _imagenet(
                "imagenet_r", "rendition", "tfds:imagenet_r:test", "folder:imagenet:imagenet-r"
            ),
            "imagenet_sketch": _imagenet(
                "imagenet_sketch",
                "rendition",
                "tfds:imagenet_sketch:test",
                "folder:imagenet:imagenet-sketch/sketch",
                "folder:imagenet:imagenet-sketch",
            ),
            "objectnet": _imagenet("objectnet", "natural", "folder:objectnet:objectnet-1.0"),
        },
    },
    "domainnet": {
        "templates": "openai",
        "test_sets": {
            "real": _domainnet("real", "natural"),
            "clipart": _domainnet("clipart", "rendition"),
            "painting": _domainnet("painting", "rendition"),
            "sketch": _domainnet("sketch", "rendition"),
            "quickdraw": _domainnet("quickdraw", "rendition"),
            # Photos and drawings within one picture, often.
            "infograph": _domainnet("infograph", "ambiguous"),
        },
    },
}
