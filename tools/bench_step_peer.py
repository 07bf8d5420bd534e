"""open_clip's training step, for `tools.bench`; run by a Python that has torch and open_clip.

    python -m tools.bench_step_peer --batch_size=16                        # eager, fp32, on the CPU
    python -m tools.bench_step_peer --batch_size=1024 --compile --amp      # on a GPU

open_clip's model, loss and optimiser settings, on `bench_inputs`. For every line "<steps>" on the
standard input it makes as many steps and prints the seconds that they took; without `--serve` it
times some rounds itself and prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from tools import bench_inputs
from tools.reference import open_clip, torch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As open_clip_train sets them.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    torch.manual_seed(0)
    model = open_clip.create_model(args.model, pretrained=None, device=device)
    model.train()
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, p in model.named_parameters():
        spared = p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name
        (others if spared or "logit_scale" in name else decayed).append(p)
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    fused = device == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=fused)
    loss_fn = open_clip.ClipLoss()
    step_model = torch.compile(model, dynamic=False) if args.compile else model

    images = torch.from_numpy(bench_inputs.images(args.batch_size)).to(device)
    mean, std = (torch.tensor(x, device=device) for x in (bench_inputs.MEAN, bench_inputs.STD))
    images = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    tokens = torch.from_numpy(bench_inputs.tokens(args.batch_size)).long().to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16) if args.amp else contextlib.nullcontext():
            found = step_model(images, tokens)
            found = found if isinstance(found, tuple) else tuple(found.values())
            loss = loss_fn(*found[:3])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    start = time.perf_counter()
    timed(args.warmup)
    ready = time.perf_counter() - start
    if args.serve:
        print("ready", flush=True)
        for line in sys.stdin:
            print(timed(int(line)), flush=True)
        return
    seconds = sorted(timed(args.steps) / args.steps for _ in range(args.rounds))
    found = {
        "open_clip": open_clip.__version__,
        "torch": torch.__version__,
        "batch": args.batch_size,
        "compile": args.compile,
        "amp": args.amp,
        "ms": [round(1e3 * s, 2) for s in seconds],
        "pairs_per_second": round(args.batch_size / seconds[len(seconds) // 2], 1),
        "warmup_seconds": round(ready, 1),
    }
    if device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
