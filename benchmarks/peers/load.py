# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as PyTorch writes and reads it.

  load.py FOLDER --make OUT    the weights of FOLDER as OUT/best_model.pt, names as published
  load.py OUT [--repeats N]    times torch.load; prints one JSON object
"""
import argparse
import json
import os
import shutil
import time

import torch

from scgpt_torch import as_tensors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--make")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.make:
        os.makedirs(args.make, exist_ok=True)
        weights = {name.replace("in_proj_weight", "Wqkv.weight").replace("in_proj_bias", "Wqkv.bias"):
                   tensor for name, tensor in as_tensors(f"{args.folder}/model.safetensors").items()}
        torch.save(weights, f"{args.make}/best_model.pt")
        for name in ("args.json", "vocab.json"):
            shutil.copy(f"{args.folder}/{name}", args.make)
        print("{}")
        return
    seconds = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        torch.load(f"{args.folder}/best_model.pt", map_location="cpu")
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
