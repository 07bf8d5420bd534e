"""Writes what a tiny open_clip model computes, for tests/models/test_parity.py to compare with.

    make .venv-parity
    .venv-parity/bin/python -m tools.make_parity_fixture tests/models/fixtures/open_clip_tiny.npz

The file holds one set of random weights (`weight/<open_clip's name>`, torch's layout), a batch
(`image` uint8 [b,h,w,3], `tokens` [b,n]) and, for each case of CASES, the normalised features, the
contrastive loss and the norm of the loss's gradient by each weight. Only this tool needs torch.
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from tools.reference import open_clip, open_clip_model, torch

EMBED_DIM = 16
VISION = {"image_size": 24, "patch_size": 8, "width": 24, "head_width": 8, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 24, "heads": 3, "layers": 2}
BATCH = 6

# The three functions that the same weights can mean.
CASES: dict[str, dict[str, Any]] = {
    "gelu": {"quick_gelu": False, "pool_type": "tok"},
    "quick_gelu": {"quick_gelu": True, "pool_type": "tok"},
    "gelu_avg": {"quick_gelu": False, "pool_type": "avg"},
}


def build(quick_gelu: bool, pool_type: str) -> torch.nn.Module:
    """A tiny open_clip CLIP; `.eval()` changes nothing, it has no dropout."""
    return open_clip_model.CLIP(
        EMBED_DIM, VISION | {"pool_type": pool_type}, TEXT, quick_gelu=quick_gelu
    ).eval()


def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random images, and captions of several lengths that end with the largest token."""
    size, context, vocab = VISION["image_size"], TEXT["context_length"], TEXT["vocab_size"]
    image = rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    tokens = np.zeros((BATCH, context), np.int32)
    for row, length in zip(tokens, rng.integers(3, context + 1, BATCH)):
        row[:length] = [vocab - 2, *rng.integers(1, vocab - 2, length - 2), vocab - 1]
    return image, tokens


def run(
    case: dict, state: dict[str, torch.Tensor], image: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Features, loss and gradient norms of one case."""
    model = build(**case)
    model.load_state_dict(state)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)
    pixels = (torch.from_numpy(image).float() / 255 - mean) / std
    features = model(pixels.permute(0, 3, 1, 2), torch.from_numpy(tokens).long())
    loss = open_clip.ClipLoss()(*features)
    loss.backward()
    results = {"image_features": features[0], "text_features": features[1], "loss": loss}
    results |= {f"grad_norm/{n}": p.grad.norm() for n, p in model.named_parameters()}
    return {name: value.detach().numpy() for name, value in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    model = build(**CASES["gelu"])
    with torch.no_grad():
        # Biases and norms start at 0 and 1: moved, so that forgetting one of them shows.
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    image, tokens = batch(np.random.default_rng(0))
    arrays = {"image": image, "tokens": tokens}
    arrays |= {f"weight/{name}": value.numpy() for name, value in state.items()}
    for name, case in CASES.items():
        results = run(case, state, image, tokens)
        arrays |= {f"{name}/{key}": value for key, value in results.items()}
    np.savez_compressed(out, **arrays)
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    print(f"{out}: {len(arrays)} arrays, {out.stat().st_size} bytes ({versions})")


if __name__ == "__main__":
    main()
