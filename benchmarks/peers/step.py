# SPDX-License-Identifier: Apache-2.0
"""One training step in PyTorch: forward, cross entropy, backward for LoRA and head, AdamW.

  step.py FOLDER VARIANT [--steps N] [--warmup N] [--gradients REFERENCE]

VARIANT: eager, sdpa, compile (sdpa under torch.compile), sdpa-bf16 (sdpa under autocast).
--gradients compares loss and gradients with the file of whole_bench instead of timing.
Prints one JSON object.
"""
import argparse
import contextlib
import json
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import networks_torch
import scgpt_torch
from scgpt_torch import peak_rss, read_safetensors


def peak_gflops():
    a, b = torch.rand(4096, 512), torch.rand(512, 1536)
    best = 0.0
    for _ in range(40):
        begin = time.perf_counter()
        a @ b
        best = max(best, 2e-9 * 4096 * 512 * 1536 / (time.perf_counter() - begin))
    return best


def compare(net, loss, path):
    """Largest difference of a gradient, relative to the largest element of that gradient."""
    loss.backward()
    worst, where = 0.0, ""
    want = read_safetensors(path)
    if set(want) != set(net.named):
        sys.exit(f"trained parameters differ: {sorted(set(want) ^ set(net.named))[:4]}")
    for name, parameter in net.named.items():
        got = parameter.grad.numpy()
        difference = float(np.abs(got - want[name]).max() / np.abs(want[name]).max())
        if not difference <= worst:
            worst, where = difference, name
    return {"loss": loss.item(), "gradient_difference": worst, "parameter": where,
            "parameters": len(want)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("variant", choices=["eager", "sdpa", "compile", "sdpa-bf16"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gradients")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import_rss = peak_rss()
    attention = "eager" if args.variant == "eager" else "sdpa"
    scgpt = not pathlib.Path(args.folder, "sizes.json").exists()
    net, cells = (scgpt_torch if scgpt else networks_torch).load(args.folder, attention, grafted=True)
    net.train()
    run = torch.compile(net) if args.variant == "compile" else net
    bf16 = args.variant.endswith("bf16")
    matrices = [p for p in net.named.values() if p.dim() > 1]
    vectors = [p for p in net.named.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                                   {"params": vectors, "weight_decay": 0.0}], lr=1e-4, fused=True)

    def loss_of():
        batch = cells.batch(np.arange(len(cells)))
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            logits = run(*batch)
        return F.cross_entropy(logits.float(), cells.labels)

    if args.gradients:
        print(json.dumps(compare(net, loss_of(), args.gradients)))
        return
    seconds, losses = [], []
    for step in range(args.warmup + args.steps):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step >= args.warmup:
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_rss": peak_rss(),
                      "import_rss": import_rss, "peak_gflops_f32": peak_gflops(),
                      "torch": torch.__version__}))


if __name__ == "__main__":
    main()
