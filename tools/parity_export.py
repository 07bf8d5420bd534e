"""Whether an export of ours gives open_clip the same answers, image by image.

    .venv-parity/bin/python -m tools.parity --only=export \
        --checkpoint=runs/mine --suites=demo,pacs --data_root=data

The checkpoint is exported, `open_clip.create_model_and_transforms("local-dir:...")` loads it
strictly, and both classify every image of the suites: ours with the job evaluate's evaluator,
open_clip with its own image transform, tokeniser and zero-shot classifier.
"""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
from PIL import Image

from clipdg_jax.data import demo, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import predictions, suites, zero_shot
from clipdg_jax.interop import convert
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import checkpoints, sharding
from tools.parity_findings import Finding
from tools.reference import open_clip, torch

_BATCH = 64
# Of a class's logit, in units of 100 * cosine: below it rounding decides between two classes.
_ROUNDING = 1e-3


def compare(checkpoint: str, names: Sequence[str], data_root: str) -> Iterator[Finding]:
    """The findings for every test set of the suites.

    Raises:
      UserError: there is no such checkpoint or suite, or open_clip has no such model.
    """
    opened = suites.load(names, data_root)
    loaded = checkpoints.load_params(checkpoints.directory_of(checkpoint))
    model = model_lib.Model(config_lib.from_config(loaded.architecture))
    size = model.config.text.vocab_size
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    evaluator = zero_shot.Evaluator(model, tokenizer.get_tokenizer(size), opened, mesh)
    ours = evaluator.predict(loaded.params)
    with tempfile.TemporaryDirectory() as folder:
        convert.export(checkpoint, folder, "open_clip")
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        state = safetensors.torch.load_file(f"{folder}/open_clip_model.safetensors")
        theirs.load_state_dict(state, strict=True)
        words = _tokenizer(size, model.config.text.context_length, pathlib.Path(folder))
    for suite in opened:
        for test_set in suite.test_sets:
            mine = ours[suite.name][test_set.name]
            yield from _findings(
                f"{suite.name}/{test_set.name}", test_set, mine, theirs.eval(), transform, words
            )


def made_here() -> Iterator[Finding]:
    """The same on a small demo world, for a small model with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        root, run = os.path.join(folder, "data"), os.path.join(folder, "run")
        demo.ensure(root, demo.DemoSpec(pool=0, test_natural=400, test_style=100), processes=0)
        config = config_lib.PRESETS["tiny-plain"]
        params = dict(model_lib.Model(config).init(jax.random.key(0)))
        # What is the same for all images is made small, or nearly all have the same answer.
        for name in ("visual.class_embedding", "visual.positional_embedding"):
            params[name] = 0.1 * params[name]
        params["visual.conv1.weight"] = 10 * params["visual.conv1.weight"]
        kept = checkpoints.Checkpoints(
            pathlib.Path(run) / "checkpoints", identity={}, architecture=config.architecture
        )
        kept.save(0, {"params": params, "frozen": {}, "opt": (), "step": jnp.int32(0)})
        kept.close()
        yield from compare(run, ("demo", "demo_heldout"), root)


def _findings(
    name: str,
    test_set: suites.TestSet,
    mine: predictions.Predictions,
    theirs: torch.nn.Module,
    transform: Callable[[Image.Image], torch.Tensor],
    words: open_clip.tokenizer.SimpleTokenizer,
) -> Iterator[Finding]:
    if any(len(names) != 1 for names in test_set.prompt_names):
        raise UserError(f"{name}: has classes with several names, as open_clip's head has not")
    names = [one for (one,) in test_set.prompt_names]
    functions = [lambda c, t=t: t.replace("{}", c) for t in test_set.templates]
    head = open_clip.build_zero_shot_classifier(theirs, words, names, functions, 4, "cpu").numpy()
    evaluated = np.flatnonzero(mine.evaluated)
    answers, probabilities, margins = [], [], []
    for start in range(0, len(mine.index), _BATCH):
        records = [test_set.source.record(int(i)) for i in mine.index[start : start + _BATCH]]
        # open_clip's loaders convert before they transform.
        opened = [Image.open(io.BytesIO(record.image)).convert("RGB") for record in records]
        with torch.no_grad():
            pixels = torch.stack([transform(image) for image in opened])
            features = theirs.encode_image(pixels, normalize=True).numpy()
        logits = 100 * features @ head[:, evaluated]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        answers.append(evaluated[logits.argmax(axis=1)])
        probabilities.append(1 / shares.sum(axis=1))
        best = np.sort(logits, axis=1)
        margins.append(best[:, -1] - best[:, -2])
    different = np.concatenate(answers) != mine.prediction
    counted = f"of {len(different)}, {len(np.unique(mine.prediction))} classes answered"
    yield Finding(f"export, {name}: predictions that differ", int(different.sum()), 0, counted)
    gap = np.abs(np.concatenate(probabilities) - mine.probability).max()
    close = int((np.concatenate(margins) < _ROUNDING).sum())
    note = f"{close} images with two classes within {_ROUNDING:g}"
    yield Finding(f"export, {name}: probabilities, maximum", float(gap), 1e-3, note)


def _tokenizer(size: int, length: int, folder: pathlib.Path) -> open_clip.tokenizer.SimpleTokenizer:
    """open_clip's tokeniser, with the first merges of its vocabulary for a smaller one."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # A heading, then the merges; besides them there are two tokens a byte, and start and end.
    path = folder / "merges.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines[: 1 + size - 2 * 256 - 2]))
    made = open_clip.tokenizer.SimpleTokenizer(str(path), context_length=length)
    if made.vocab_size != size:
        raise SystemExit(f"open_clip's tokeniser has {made.vocab_size} tokens, not {size}")
    return made
