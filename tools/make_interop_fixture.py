"""Writes what open_clip, torch and Hugging Face save, tiny, for tests/interop to read.

    make .venv-parity
    .venv-parity/bin/python -m tools.make_interop_fixture tests/interop/fixtures

`open_clip/` and `hugging_face/` hold random weights as the libraries save them, with their
configurations, and `expected.npz` the features that the libraries compute with them of its `image`
(uint8 [b,h,w,3]) and `tokens` [b,n]; `training.pt` is a checkpoint as open_clip's training leaves
it, and `tensors.pt` holds tensors of every awkward kind. Only this tool needs torch.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import transformers

from tools.reference import open_clip, open_clip_model, torch

EMBED_DIM = 8
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 8, "heads": 2, "layers": 2}
BATCH = 4


def move(model: torch.nn.Module) -> torch.nn.Module:
    """Moves biases and norms off the 0 and 1 at which they start."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def hugging_face() -> transformers.CLIPModel:
    """The same architecture, with QuickGELU, as the library's class."""
    vision = {
        "hidden_size": VISION["width"],
        "intermediate_size": 4 * VISION["width"],
        "num_hidden_layers": VISION["layers"],
        "num_attention_heads": VISION["width"] // VISION["head_width"],
        "image_size": VISION["image_size"],
        "patch_size": VISION["patch_size"],
        "hidden_act": "quick_gelu",
    }
    text = {
        "hidden_size": TEXT["width"],
        "intermediate_size": 4 * TEXT["width"],
        "num_hidden_layers": TEXT["layers"],
        "num_attention_heads": TEXT["heads"],
        "max_position_embeddings": TEXT["context_length"],
        "vocab_size": TEXT["vocab_size"],
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,  # what CLIP's own files say: read at the largest id
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=EMBED_DIM
    )
    return transformers.CLIPModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    size, context, vocab = VISION["image_size"], TEXT["context_length"], TEXT["vocab_size"]
    image = rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    tokens = np.zeros((BATCH, context), np.int32)
    for row, length in zip(tokens, rng.integers(3, context + 1, BATCH)):
        row[:length] = [vocab - 2, *rng.integers(3, vocab - 2, length - 2), vocab - 1]
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)
    pixels = ((torch.from_numpy(image).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    ids = torch.from_numpy(tokens).long()
    expected: dict[str, Any] = {"image": image, "tokens": tokens}

    ours = move(open_clip_model.CLIP(EMBED_DIM, VISION, TEXT))
    folder = out / "open_clip"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(ours.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}) + "\n")
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    loss = open_clip.ClipLoss()(*ours(pixels, ids))
    features = ours(pixels, ids)
    expected["open_clip/image"], expected["open_clip/text"] = features[0], features[1]
    loss.backward()
    optimizer.step()
    half = {f"module.{name}": value.half() for name, value in ours.state_dict().items()}
    few = {"state": dict(list(optimizer.state_dict()["state"].items())[:1])}
    saved = {"epoch": 3, "name": "run", "state_dict": half, "optimizer": few}
    torch.save(saved, out / "training.pt")
    expected["training/logit_scale"] = half["module.logit_scale"].float()

    theirs = move(hugging_face())
    theirs.save_pretrained(out / "hugging_face")
    with torch.no_grad():
        result = theirs(pixel_values=pixels, input_ids=ids)
    expected["hugging_face/image"] = result.image_embeds
    expected["hugging_face/text"] = result.text_embeds

    base = torch.randn(3, 4)
    tensors = {
        "bfloat16": base.bfloat16(),
        "half": base.half(),
        "double": base.double(),
        "transposed": base.T,
        "slice": base[1:, 2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "integers": torch.arange(5),
        "flags": torch.tensor([True, False]),
    }
    parameter = torch.nn.Parameter(base)
    torch.save({"nested": [tensors, (parameter, None, "text")], "shared": base}, out / "tensors.pt")
    expected |= {f"tensors/{name}": value.float() for name, value in tensors.items()}
    expected["tensors/parameter"] = base
    arrays = {
        name: value.detach().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in expected.items()
    }
    np.savez_compressed(out / "expected.npz", **arrays)
    sizes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {sizes} bytes (torch {torch.__version__}, open_clip {open_clip.__version__})")


if __name__ == "__main__":
    main()
