"""Every run of the domain study and of the fine-tuning benchmarks, one line each.

    python -m clipdg_jax.main --config=configs/paper.py:natural=44M,rendition=13M
    python -m clipdg_jax.main --config=configs/paper.py:classifier --config.dry_run=True

The argument is one of those below; `configs/sweep.py:paper` is all the pre-trainings together.
Hardware: 8 A100 with 80 GB, or as many FLOP/s of anything else. Hours are those of the dry run,
arithmetic at an assumed MFU of 0.4 with captions packed, no measurement: one H100 reached 0.55 of
the rate at which it multiplies matrices, fed from its own memory, and published runs of others
reach 0.09 to 0.13. The pre-trainings are ViT-B/32, batch 16 384, 32 epochs of the records
that are named, of data/natural (LAION-Natural, 57 M), data/rendition (LAION-Rendition, 16 M) and
data/random-natural (random records of the pool), which `curate` writes.

    in order            hours  what it needs, and what the paper found
    dedup                   -  the pool's tars, data/laion; some 200 M of 400 M records are left
    classifier            0.1  labels.sqlite: 13 000 labels to train, 3 000 + 3 000 others; its
                               thresholds are set for a precision of 98 %
    curate                  -  dedup, classifier; natural 57 M, rendition 16 M
    evaluate                -  the checkpoints of one run, every one of them
    imagenet              8.3  every method, a training for each coefficient; a ViT-B/16 in
                               checkpoints/ViT-B-16. As published, of OpenAI's: zero-shot 68.3 %
                               on ImageNet and 58.4 % on five shifts, full fine-tuning 80.7 and
                               52.8, WiSE-FT 81.7 and 63.0
    domainnet             0.8  the same; zero-shot 82.5 % real, 58.3 % on four others

    pre-training                     hours
    natural=57M                       14.6
    natural=45M                       11.5
    natural=30M                        7.7
    natural=16M                        4.1
    random-natural=57M                14.6
    random-natural=45M                11.5
    random-natural=30M                 7.7
    random-natural=16M                 4.1
    rendition=16M                      4.1
    natural=44M,rendition=13M         14.6
    natural=41M,rendition=16M         14.6
    natural=22.5M,rendition=7.5M       7.7
    natural=15M,rendition=15M          7.7
    natural=15.75M,rendition=0.25M     4.1
    natural=15.5M,rendition=0.5M       4.1
    natural=15M,rendition=1M           4.1
    natural=14M,rendition=2M           4.1
    natural=12M,rendition=4M           4.1
    natural=8M,rendition=8M            4.1
    natural=4M,rendition=12M           4.1
    natural=0.5M,rendition=15.5M       4.1
    natural=8M,rendition=0M            2.0
    natural=6M,rendition=2M            2.0
    natural=4M,rendition=4M            2.0
    natural=2M,rendition=6M            2.0
    natural=0M,rendition=8M            2.0

Its findings to compare with: natural alone reaches about 0.4 of the accuracy of a CLIP trained on
random records on renditions (relative, corrected for chance), and the best ratio of rendition to
natural records lies between 1:3 and 1:1. Accuracies of the single runs were not found.
"""

import ml_collections

from configs import classify, curate, dedup, evaluate, finetune, mix

NATURAL = ("57M", "45M", "30M", "16M")
MIXES = (  # Millions of natural and of rendition records; 57, 30, 16 and 8 in all.
    ("44M", "13M"), ("41M", "16M"),
    ("22.5M", "7.5M"), ("15M", "15M"),
    ("15.75M", "0.25M"), ("15.5M", "0.5M"), ("15M", "1M"), ("14M", "2M"), ("12M", "4M"),
    ("8M", "8M"), ("4M", "12M"), ("0.5M", "15.5M"),
    ("8M", "0M"), ("6M", "2M"), ("4M", "4M"), ("2M", "6M"), ("0M", "8M"),
)  # fmt: skip
PRETRAININGS = (
    *(f"natural={size}" for size in NATURAL),
    *(f"random-natural={size}" for size in NATURAL),
    "rendition=16M",
    *(f"natural={natural},rendition={rendition}" for natural, rendition in MIXES),
)
OTHERS = ("dedup", "classifier", "curate", "evaluate", "imagenet", "domainnet")
PRESETS = (*OTHERS, *PRETRAININGS)
SUITES = "imagenet_clean,domainnet_clean"


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "natural=44M,rendition=13M"
    made = {
        "dedup": lambda: dedup.get_config("paper"),
        "classifier": lambda: classify.get_config("paper"),
        "curate": curate_all,
        "evaluate": evaluate_all,
        "imagenet": lambda: finetune.get_config("compare,imagenet"),
        "domainnet": lambda: finetune.get_config("compare,domainnet"),
    }
    if argument in made:
        return made[argument]()
    if argument not in PRETRAININGS:
        raise ValueError(
            f"paper.py: {argument!r} is none of its runs ({', '.join(OTHERS)}, and pre-trainings "
            f"such as {PRETRAININGS[0]}); for other mixes use configs/mix.py:paper,{argument}"
        )
    return pretrain(argument)


def pretrain(amounts: str) -> ml_collections.ConfigDict:
    config = mix.get_config(f"paper,{amounts}")
    config.eval.suites = SUITES
    millions = [float(part.partition("=")[2].rstrip("M")) for part in amounts.split(",")]
    epoch = round(sum(millions) * 1e6) // config.batch_size
    config.eval_every = config.checkpoint_every = config.images_every = epoch
    return config


def curate_all() -> ml_collections.ConfigDict:
    config = curate.get_config("paper")
    config.controls = "natural"
    config.test_sets = "imagenet,domainnet"
    return config


def evaluate_all() -> ml_collections.ConfigDict:
    config = evaluate.get_config()
    config.checkpoint = "runs/paper-natural=44M,rendition=13M"
    config.step = "all"
    config.suites = SUITES
    config.eval.workers = 16
    return config
