r"""Converts open_clip's and Hugging Face's CLIP weights to a checkpoint of ours, and back.

    python -m tools.convert_openclip --weights=openai/open_clip_model.safetensors --out=runs/openai
    python -m tools.convert_openclip --weights=vit_b_32.pt --model=ViT-B-32 --activation=gelu \
        --out=runs/mine
    python -m tools.convert_openclip --checkpoint=runs/plain --out=exported
    python -m tools.convert_openclip --checkpoint=runs/plain --out=exported --format=hugging_face

In: safetensors, or torch.save's zip format, of which only tensors and dictionaries are read, and
nothing is run. The result serves wherever a run's checkpoints do: `config.checkpoint` of evaluate,
`config.encoder.checkpoint` of classify, fine-tuning.

Which model it is, and with which activation, is read from `open_clip_config.json` or `config.json`
beside the weights; where there is none, `--model` and `--activation` state it.

Out: safetensors and the configuration that open_clip (`local-dir:<out>`) or Hugging Face's
`CLIPModel.from_pretrained` reads. float32 weights make the round trip bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from absl import flags

from clipdg_jax.errors import UserError
from clipdg_jax.interop import convert, leaves
from clipdg_jax.models import config as config_lib
from tools import cli


def main(argv: Sequence[str]) -> None:
    """Converts in the direction that the flags say, and tells what was done."""
    del argv
    logging.getLogger().setLevel(logging.WARNING)  # Orbax tells of each of its steps.
    values = flags.FLAGS
    if bool(values.weights) == bool(values.checkpoint):
        raise UserError("give --weights, to bring weights in, or --checkpoint, to take them out")
    if not values.out:
        raise UserError("--out: is missing; name the directory to write")
    if values.checkpoint:
        for path in convert.export(values.checkpoint, values.out, values.format, values.step):
            print(f"wrote {path}")
        return
    weights = convert.read_weights(values.weights)
    converted = convert.to_ours(weights, values.model, values.activation)
    directory = convert.save_checkpoint(converted, weights, values.out)
    numbers = sum(value.size for value in converted.params.values())
    print(
        f"{weights.path}: {weights.form}, {len(converted.params)} parameters of {numbers:,} numbers"
    )
    print(f"activation {converted.config.activation}, stated by {converted.stated}")
    if converted.aside:
        print(f"left aside, as no parameters: {', '.join(converted.aside)}")
    print(f"wrote {directory}")


if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "In: the file of foreign weights.")
    flags.DEFINE_enum("model", None, list(config_lib.PRESETS), "In: the model they are of.")
    flags.DEFINE_enum("activation", None, list(config_lib.ACTIVATIONS), "In: its activation.")
    flags.DEFINE_string("checkpoint", None, "Out: a run's workdir, or its checkpoints/.")
    flags.DEFINE_integer("step", None, "Out: of the checkpoint; the latest by default.")
    flags.DEFINE_enum("format", "open_clip", list(leaves.FORMATS), "Out: for whom.")
    flags.DEFINE_string("out", None, "The directory to write.")
    cli.run(main)
