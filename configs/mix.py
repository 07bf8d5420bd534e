"""Pre-trains a CLIP on a mix of natural and rendition images and evaluates it zero-shot.

    python -m clipdg_jax.main --config=configs/mix.py                          # demo, 3:1
    python -m clipdg_jax.main --config=configs/mix.py:natural=1,rendition=0    # natural only
    python -m clipdg_jax.main --config=configs/mix.py:study,natural=3,rendition=1
    python -m clipdg_jax.main --config=configs/mix.py:pacs
    python -m clipdg_jax.main --config=configs/mix.py:paper,natural=44M,rendition=13M

The argument is `[preset][,mix]`. A mix gives amounts (`natural=44M,rendition=13M`: seeded, nested
subsets, the same every epoch) or bare weights (`natural=3,rendition=1`: shares only). Names are
datasets under `config.data.root`, paths, or `tfds:` names.

Presets:
  demo   a tiny CLIP on what configs/curate.py makes of the demo's pool, which it does when that
         is missing. 8 minutes on two cores, half of them for the data; 85 % natural, 68 %
         rendition.
  study  the same on more data, for longer; `make study` runs the README's. 10 minutes of one
         core; 94 % natural, 96 % rendition.
  encoder  a tiny CLIP on the unsorted demo pool, for the domain classifiers to start from. A
         minute on two cores.
  pacs   a tiny CLIP at 64 px on photo, art_painting, cartoon and sketch, imported to data/pacs by
         `python -m tools.import_folder`. 10 to 19 minutes of one core; 58 % photo, 51 % the
         others.
  paper  ViT-B/32, batch 16 384, 32 epochs, for 4 or 8 A100s or a TPU slice; the datasets are
         `data/natural` and `data/rendition`. Add --config.dry_run=True to see what it takes.

Length: `steps` if set, else `examples`, else `epochs` of the amounts in the mix. Batches per
epoch are rounded down.
"""

import dataclasses

import ml_collections
from ml_collections.config_dict import placeholder

from clipdg_jax.data import demo as demo_world

PRESETS = ("demo", "study", "encoder", "pacs", "paper")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    preset, mix = _parse(argument or "")
    made = {"demo": demo, "study": study, "encoder": encoder, "pacs": pacs, "paper": paper}
    config = made[preset]()
    if mix:
        config.data.mix = mix
    return config


def base() -> ml_collections.ConfigDict:
    """Every field, at OpenCLIP's setting where it has one."""
    config = ml_collections.ConfigDict()
    config.job = "pretrain"
    config.inputs = ()  # Configs whose runs make what is missing, in this order.
    config.seed = 0
    config.steps = 0  # Length: steps, else examples, else epochs.
    config.examples = 0
    config.epochs = 0
    config.batch_size = 16_384  # Over all devices.
    config.accumulate = 1  # Parts that a batch goes through the towers in, where memory is short.
    config.loss = "clip"  # clip | siglip
    config.dtype = "bfloat16"  # Of the computation; parameters are float32.

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"
    config.data.mix = "natural=3,rendition=1"
    config.data.subset_seed = 0  # Which records an amount names.
    config.data.crop_scale = (0.9, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.shuffle_block = 1  # Consecutive records read together; 1 on local disks.
    config.data.shuffle_window = 64  # Blocks shuffled together, where shuffle_block > 1.
    # Captions share rows: how many rows there may be per caption, besides 1. (): no packing.
    config.data.pack_rows = (0.22, 0.28, 0.45)
    config.data.workers = 8  # Processes; 0 loads in the training process.
    config.data.threads = 2  # In each of them.
    config.data.prefetch = 4  # Batches ahead, in each of them.
    config.data.demo = ml_collections.ConfigDict()  # What to make when missing; {}: nothing.

    config.model = ml_collections.ConfigDict()
    config.model.name = "ViT-B-32"
    config.model.remat = "none"  # none | full | dots: what the backward pass computes again.
    config.model.scan_layers = False
    config.model.kernels = "auto"  # auto: fused kernels on NVIDIA GPUs | xla: never
    size = ("width", "layers", "heads")  # What the named model has, unless set here.
    config.model.vision = _unset("image_size", "patch_size", "stem_blocks", *size)
    config.model.text = _unset("context_length", "vocab_size", *size)

    config.optim = ml_collections.ConfigDict()
    config.optim.lr = 5e-4
    config.optim.warmup = 2000
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.98
    config.optim.eps = 1e-6
    config.optim.weight_decay = 0.2
    config.optim.clip = 0.0  # Global gradient norm; 0 is off.

    config.eval = ml_collections.ConfigDict()
    config.eval.suites = ""  # Comma-separated; "" evaluates nothing.
    config.eval.batch_size = 512
    config.eval.workers = 0

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # -1: all devices that fsdp leaves.
    config.mesh.fsdp = 1

    config.log_every = 50
    config.eval_every = 0  # 0: at the end only.
    config.checkpoint_every = 0  # 0: at the end only.
    config.images_every = 0  # Grids of what the model is fed; 0: none.
    config.keep_checkpoints = 0  # 0 keeps all.
    config.profile_start = 0
    config.profile_steps = 0  # 0: no profile.
    config.deterministic = False  # Bit-exact on GPUs too, and slower.
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    config.inputs = ("configs/curate.py",)
    config.examples = 80_000
    config.batch_size = 64
    config.dtype = "float32"
    config.model.name = "tiny"
    config.optim.lr = 1e-3
    config.optim.warmup = 200
    config.data.root = "data/demo"
    config.data.workers = 0
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(demo_world.DemoSpec()))
    config.eval.suites = "demo_clean,demo_heldout_clean"
    config.eval_every = 500
    config.checkpoint_every = 500
    config.images_every = 500
    config.keep_checkpoints = 3
    return config


def study() -> ml_collections.ConfigDict:
    config = demo()
    config.inputs = ()
    config.examples = 272_000
    config.data.root = "data/study"
    config.data.demo.update({"natural": 40_000, "rendition": 40_000, "pool": 0, "pool_copies": 0.0})
    config.eval.suites = "demo,demo_heldout"
    config.eval_every = 0
    config.checkpoint_every = 1000
    return config


def encoder() -> ml_collections.ConfigDict:
    config = demo()
    config.inputs = ()
    config.examples = 24_000
    config.data.root = "data/pool"
    config.data.mix = "pool=1"
    config.data.demo.update(
        {"pool": 20_000, "pool_copies": 0.0, "test_pool": 12_000, "test_natural": 600}
    )
    # The banners and rims that make a picture ambiguous are thin: every stored pixel is used.
    config.model.vision.image_size = config.data.demo.size
    config.eval.suites = ""
    config.eval_every = 0
    return config


def pacs() -> ml_collections.ConfigDict:
    config = demo()
    config.inputs = ()
    config.data.root = "data"
    config.data.mix = "pacs/photo=1,pacs/art_painting=1,pacs/cartoon=1,pacs/sketch=1"
    config.data.demo = ml_collections.ConfigDict()
    config.data.workers = 1
    config.data.crop_scale = (0.4, 1.0)  # A few thousand images: crops are the augmentation.
    config.model.name = "tiny-64"
    config.examples = 128_000
    config.eval.suites = "pacs"
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.epochs = 32
    config.data.mix = "natural=44M,rendition=13M"
    config.model.remat = "dots"  # 4 x 80 GB hold it, captions packed; "full" takes far less.
    config.eval_every = 3479  # An epoch of 57 M records.
    config.checkpoint_every = 3479
    config.images_every = 3479
    return config


def _unset(*fields: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({field: placeholder(int) for field in fields})


def _parse(argument: str) -> tuple[str, str]:
    preset, mix = "demo", []
    for i, part in enumerate(p for p in argument.split(",") if p):
        if "=" in part:
            mix.append(part)
        elif i == 0 and part in PRESETS:
            preset = part
        else:
            raise ValueError(
                f"mix.py: {part!r} is neither a preset ({', '.join(PRESETS)}, given first) "
                "nor <dataset>=<amount or weight>"
            )
    return preset, ",".join(mix)
