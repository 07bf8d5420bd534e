"""Compares with open_clip, live: towers at full size, gradients, training, data, heads.

    make parity
    .venv-parity/bin/python -m tools.parity --only=tokens,ViT-B-32
    .venv-parity/bin/python -m tools.parity --only=export --checkpoint=runs/mine --suites=demo

Weights are random, of open_clip's own initialisation and then moved, so that no bias is 0 and no
gain 1. They reach our model through `clipdg_jax.interop`, so that what `convert_openclip` does is
what is compared. A line for each comparison gives what was measured and its limit; the exit status
is 1 where one is over. ViT-L-14 needs 10 GB of memory. `export` exports a checkpoint and compares
the two libraries' answers for every image of suites: a small random one on a small demo world,
unless another is named.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import flags
from open_clip_train.scheduler import cosine_lr
from PIL import Image

from clipdg_jax.data import imagenet, images, resize, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import predictions, prompts
from clipdg_jax.interop import architectures, state_dicts
from clipdg_jax.models import config as config_lib
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import losses, optimizer, sharding
from clipdg_jax.training import step as step_lib
from tools import cli, parity_export, parity_findings, parity_inputs
from tools.parity_findings import Finding
from tools.reference import ImageNetInfo, open_clip, torch

ARCHITECTURES = ("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14")
OPTIM = {
    "lr": 5e-4,
    "warmup": 3,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.2,
    "clip": None,
}
STEPS = 10
_MEAN, _STD = torch.tensor(config_lib.MEAN), torch.tensor(config_lib.STD)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same function twice: open_clip's module, and our model with its parameters."""

    theirs: torch.nn.Module
    ours: model_lib.Model
    params: Mapping[str, np.ndarray]


def build(name: str, moved: float = 0.02, scan: bool = False) -> Pair:
    """An open_clip model with random weights, `moved` by noise, and ours with the same."""
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, pretrained=None).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(moved * torch.randn_like(weight))
        theirs.logit_scale.fill_(np.log(1 / 0.07))
    stated = architectures.from_open_clip(open_clip.get_model_config(name), name)
    config = dataclasses.replace(config_lib.PRESETS[name], scan_layers=scan)
    if stated.architecture != config.architecture:
        raise SystemExit(f"{name}: open_clip's configuration is not our preset's")
    ours = model_lib.Model(config)
    state = {n: value.numpy() for n, value in theirs.state_dict().items()}
    params, _ = state_dicts.to_ours(state, ours, "open_clip", name)
    return Pair(theirs, ours, params)


def batch(count: int, config: config_lib.ClipConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and captions' tokens."""
    size = config.vision.image_size
    pictures = np.stack([parity_inputs.picture(size, size, seed + i) for i in range(count)])
    texts = parity_inputs.captions(4 * count, seed)[::4]
    return pictures, tokenizer.get_tokenizer()(texts, config.text.context_length)


def as_torch(image: np.ndarray, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = (torch.from_numpy(image).float() / 255 - _MEAN) / _STD
    return pixels.permute(0, 3, 1, 2), torch.from_numpy(tokens).long()


def towers(name: str) -> Iterator[Finding]:
    """Features, the loss, and the loss's gradient by each leaf."""
    pair = build(name, scan=name != "ViT-B-32")
    image, tokens = batch(2 if name == "ViT-L-14" else 4, pair.ours.config, 0)
    valid = jnp.ones(len(image), bool)

    def objective(params):
        features = pair.ours(params, image, tokens)
        return losses.clip_loss(*features, valid)[0], features

    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, features), gradients = run(dict(pair.params))
    theirs = pair.theirs(*as_torch(image, tokens))
    their_loss = open_clip.ClipLoss()(*theirs)
    their_loss.backward()
    for part, mine, other in zip(("image", "text"), features, theirs):
        gap = np.abs(np.asarray(mine) - other.detach().numpy()).max()
        yield Finding(f"{name}: {part} features, maximum", float(gap), 1e-4)
    want = their_loss.item()
    yield Finding(f"{name}: loss, relative", abs(float(loss) - want) / want, 1e-4)
    mine = state_dicts.to_foreign(
        {n: np.asarray(g) for n, g in gradients.items()}, pair.ours, "open_clip"
    )
    found = {n: p.grad.numpy() for n, p in pair.theirs.named_parameters()}
    if mine.keys() != found.keys():
        raise SystemExit(f"{name}: the leaves are not the same")
    whole = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in found.values()))
    worst, leaf = max(
        (np.linalg.norm(mine[n] - g) / max(np.linalg.norm(g), 1e-6 * whole), n)
        for n, g in found.items()
    )
    yield Finding(f"{name}: gradients, worst of {len(found)} leaves", float(worst), 1e-4, leaf)


def training() -> Iterator[Finding]:
    """Ten AdamW steps of ViT-B-32 with our training step, and as open_clip's trainer does them."""
    pair = build("ViT-B-32")
    mesh = sharding.make_mesh(1, 1)
    tx = optimizer.make_optimizer(OPTIM, STEPS)
    state = step_lib.init_state(lambda params: params, dict(pair.params), tx, mesh)
    abstract = step_lib.abstract_state(lambda params: params, dict(pair.params), tx, mesh)
    objective = losses.contrastive_objective(pair.ours, "clip")
    step = step_lib.make_train_step(objective, tx, abstract, mesh)
    batches = [batch(4, pair.ours.config, 100 * i) for i in range(2)]
    mine = []
    for i in range(STEPS):
        image, tokens = batches[i % 2]
        given = {"image": image, "tokens": tokens, "valid": np.ones(len(image), bool)}
        state, metrics = step(state, sharding.put_batch(given, mesh), {})
        mine.append(float(metrics["loss"]))
    weights = {n: np.asarray(p) for n, p in step_lib.merged_params(state).items()}
    del state, metrics
    model = pair.theirs
    named = list(model.named_parameters())

    # The recipe of open_clip_train.main (releases 2.24 to 3.3).
    def spared(n, p):
        return p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))

    groups = [
        {"params": [p for n, p in named if spared(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not spared(n, p)], "weight_decay": 0.2},
    ]
    adam = torch.optim.AdamW(
        groups, lr=OPTIM["lr"], betas=(OPTIM["beta1"], OPTIM["beta2"]), eps=OPTIM["eps"]
    )
    schedule = cosine_lr(adam, OPTIM["lr"], OPTIM["warmup"], STEPS)
    other = []
    for i in range(STEPS):
        schedule(i)
        adam.zero_grad()
        loss = open_clip.ClipLoss()(*model(*as_torch(*batches[i % 2])))
        loss.backward()
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        other.append(loss.item())
    gap = max(abs(a - b) / b for a, b in zip(mine, other, strict=True))
    note = f"from {other[0]:.4f} to {other[-1]:.4f}"
    yield Finding(f"ViT-B-32: losses of {STEPS} AdamW steps, relative", gap, 1e-4, note)
    final = state_dicts.to_foreign(weights, pair.ours, "open_clip")
    moved, apart = 0.0, 0.0
    start = state_dicts.to_foreign(pair.params, pair.ours, "open_clip")
    for n, p in named:
        moved += float(np.square(p.detach().numpy() - start[n], dtype=np.float64).sum())
        apart += float(np.square(p.detach().numpy() - final[n], dtype=np.float64).sum())
    yield Finding("ViT-B-32: weights after them, over their way", (apart / moved) ** 0.5, 1e-2)
    mask = optimizer.decay_mask(pair.params)
    wrong = sum(mask[n] == spared(n, p) for n, p in named)
    yield Finding("weight-decay mask, leaves that differ", wrong, 0)
    rates = optimizer.schedule(5e-4, 2000, 80_000)
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = cosine_lr(dummy, 5e-4, 2000, 80_000)
    steps = np.arange(0, 80_000, 37)
    want = np.array([reference(int(s)) for s in steps])
    gap = np.abs(np.asarray(jax.vmap(rates)(steps)) - want).max() / 5e-4
    yield Finding("schedule, of the highest rate", float(gap), 1e-6)


def initialisation() -> Iterator[Finding]:
    """The distribution of every leaf of a fresh ViT-B-32: two samples, Kolmogorov and Smirnov.

    sqrt(n m / (n + m)) D is above 2.6 once in 370 000 draws, where the distributions are the same.
    """
    pair = build("ViT-B-32", moved=0.0)
    fresh = pair.ours.init(jax.random.key(1))  # Eagerly: as one program it compiles for minutes.
    rng = np.random.default_rng(0)
    worst, leaf, constants = 0.0, "", 0.0
    for name, theirs in pair.params.items():
        one, other = np.ravel(theirs), np.ravel(fresh[name])
        if one.std() < 1e-12 or other.std() < 1e-12:
            constants = max(constants, float(np.abs(one - other).max()))
            continue
        if one.size > 20_000:
            one, other = (rng.choice(x, 20_000, replace=False) for x in (one, other))
        found = np.sqrt(one.size / 2) * scipy.stats.ks_2samp(one, other).statistic
        worst, leaf = max((worst, leaf), (float(found), name))
    yield Finding("initialisation, worst Kolmogorov-Smirnov distance", worst, 2.6, leaf)
    yield Finding("initialisation, constant leaves", constants, 1e-6)


def tokens() -> Iterator[Finding]:
    """Ids of ten thousand captions."""
    captions = parity_inputs.captions(10_000)
    theirs = open_clip.tokenizer.SimpleTokenizer()(captions).numpy()
    ours = tokenizer.get_tokenizer()(captions)
    different = int((theirs != ours).any(axis=1).sum())
    yield Finding(f"tokens, captions of {len(captions):,} that differ", different, 0)


def classes() -> Iterator[Finding]:
    """ImageNet's classes, their names and OpenAI's prompts, as the packages have them."""
    ids, names = imagenet.wordnet_ids(), imagenet.names()
    ours = [(identity, names[identity]) for identity in ids]
    theirs = list(zip(ImageNetInfo("imagenet-1k").label_names(), open_clip.IMAGENET_CLASSNAMES))
    wrong = sum(a != b for a, b in zip(ours, theirs, strict=True))
    twice = len(ours) - len(set(names.values()))
    yield Finding(f"classes of {len(ours)} that differ", wrong, 0, f"{twice} names occur twice")
    filled = [template.replace("{}", "cat") for template in imagenet.templates()]
    want = [template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    wrong = sum(a != b for a, b in zip(filled, want, strict=True))
    yield Finding(f"prompts of {len(want)} that differ", wrong, 0)


def transform() -> Iterator[Finding]:
    """Evaluation crops and training crops of image files of all kinds, in levels of 255."""
    theirs = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    worst, worst_train, count = 0, 0, 0
    for _, data in parity_inputs.image_files():
        # open_clip's loaders convert before they transform.
        opened = Image.open(io.BytesIO(data)).convert("RGB")
        want = np.rint(theirs(opened).permute(1, 2, 0).numpy() * 255).astype(int)
        decoded = images.decode(data)
        got = images.eval_crop(decoded, 224)
        worst = max(worst, int(np.abs(want - got).max()))
        draws = np.random.default_rng(len(data)).random(images.BOX_DRAWS)
        top, left, h, w = images.random_box(
            draws, decoded.shape[0], decoded.shape[1], (0.9, 1.0), (3 / 4, 4 / 3)
        )
        box = opened.crop((left, top, left + w, top + h))
        want = np.asarray(box.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
        got = resize.resize(decoded[top : top + h, left : left + w], 224, 224)
        worst_train = max(worst_train, int(np.abs(want - got).max()))
        count += 1
    yield Finding("evaluation transform, levels of 255", worst, 0, f"{count} files")
    yield Finding("training crop of the same box, levels of 255", worst_train, 0, f"{count} files")


def head() -> Iterator[Finding]:
    """The zero-shot head: class embeddings from prompts, and the answers."""
    pair = build("ViT-B-32")
    names = open_clip.IMAGENET_CLASSNAMES[:12]
    templates = ["a photo of a {}.", "a sketch of the {}.", "{}"]
    functions = [lambda c, t=t: t.format(c) for t in templates]
    theirs = open_clip.build_zero_shot_classifier(
        pair.theirs, open_clip.get_tokenizer("ViT-B-32"), names, functions, 12, "cpu"
    ).numpy()
    ids = tokenizer.get_tokenizer()(prompts.fill(templates, names))
    text = np.asarray(jax.jit(pair.ours.encode_text)(pair.params, ids))
    ours = predictions.class_embeddings(text, len(templates))
    yield Finding("zero-shot head, maximum", float(np.abs(ours - theirs.T).max()), 1e-4)
    image, _ = batch(16, pair.ours.config, 7)
    features = np.asarray(jax.jit(pair.ours.encode_image)(pair.params, image))
    with torch.no_grad():
        pixels, _ = as_torch(image, np.zeros((1, 1), np.int64))
        logits = 100 * pair.theirs.encode_image(pixels, normalize=True).numpy() @ theirs
    label = np.zeros(len(image), int)
    answers, *_ = predictions.score(features, ours, label, np.ones(len(names), bool))
    yield Finding("zero-shot answers that differ", int((answers != logits.argmax(1)).sum()), 0)


def export() -> Iterator[Finding]:
    """Answers of an exported checkpoint, image by image: the flags', or one made here."""
    values = flags.FLAGS
    if not values.checkpoint:
        return parity_export.made_here()
    names = [name for name in values.suites.split(",") if name]
    return parity_export.compare(values.checkpoint, names, values.data_root)


COMPARISONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "tokens": tokens,
    "classes": classes,
    "transform": transform,
    "initialisation": initialisation,
    "head": head,
    "export": export,
    "training": training,
    **{name: functools.partial(towers, name) for name in ARCHITECTURES},
}


def main(argv: Sequence[str]) -> None:
    """Runs the comparisons and prints a line for each finding."""
    del argv
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that weights are random.
    chosen = [part for part in flags.FLAGS.only.split(",") if part] or list(COMPARISONS)
    unknown = [part for part in chosen if part not in COMPARISONS]
    if unknown:
        raise UserError(f"--only: no {unknown[0]!r}; there are {', '.join(COMPARISONS)}")
    print(f"open_clip {open_clip.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    over = sum(parity_findings.report(part, COMPARISONS[part]) for part in chosen)
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    flags.DEFINE_string("only", "", "Comparisons by commas; all by default.")
    flags.DEFINE_string("checkpoint", "", "For export: a run of ours, or a converted one.")
    flags.DEFINE_string("suites", "demo,demo_heldout", "For export, with --checkpoint.")
    flags.DEFINE_string("data_root", "data/demo", "For export, with --checkpoint.")
    cli.run(main)
