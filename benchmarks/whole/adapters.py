# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a training step for every backbone and adapter; called by tools/bench --adapters.

  adapters.py PROGRAM [BACKBONE...] [--quick] [--steps N] [--threads N] [--out FILE]

PROGRAM: whole_bench. Published sizes, random weights, f32. Every pair is a process of its own.
--quick takes tiny networks and writes nothing.

  weights      of backbone and head
  trained      numbers that are trained, and their share of all of them
  state        value, gradient and two moments of what is trained
  activations  what a forward pass leaves for the backward pass, at the most
  scratch      what an operation needs for itself, at the most
  peak RSS     of the process; with packed copies of the weights
"""
import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

# cells and genes of a step
BACKBONES = {"scgpt": (8, 600), "geneformer": (4, 1023), "scbert": (1, 16906),
             "scfoundation": (2, 1501)}
RECOMPUTED = "lora, recomputed"  # train.activations=recompute
ADAPTERS = ["none", "lora", RECOMPUTED, "hra", "oft", "prefix", "token", "encoder", "token+encoder+lora", "all"]


def call(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def megabytes(count):
    return f"{count / 1e6:,.1f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE", help="default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--out", default=str(root / "benchmarks/results/adapters.json"))
    args = parser.parse_args()
    for name in args.backbones:
        if name not in BACKBONES:
            parser.error(f"no backbone is called {name}; there are: {' '.join(BACKBONES)}")
    rows = []
    print("| backbone | step | adapter | trained | of all | state MB | weights MB | activations MB "
          "| scratch MB | peak RSS MB | ms | of head alone |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for model in args.backbones or BACKBONES:
        cells, genes = BACKBONES[model]
        with tempfile.TemporaryDirectory(prefix="scgraft-adapters-") as folder:
            sizes = ("--preset", "tiny", "--vocab", 3000) if args.quick else ()
            genes = min(genes, 60) if args.quick else genes
            call(args.program, "make", "--model", model, "--folder", folder, "--cells", cells,
                 "--genes", genes, *sizes)
            head = None
            for adapter in ADAPTERS:
                r = call(args.program, "step", "--folder", folder, "--adapter", adapter.split(",")[0],
                         "--activations", "recompute" if adapter == RECOMPUTED else "keep",
                         "--warmup", 1, "--steps", args.steps, "--threads", args.threads)
                r.update(backbone=model, adapter=adapter, ms=1e3 * statistics.median(r["seconds"]))
                head = head or r["ms"]
                rows.append(r)
                total = r["weights_bytes"] / 4
                if adapter not in ("none", "all"):
                    total += r["trained_parameters"]
                print(f"| {model} | {r['cells']} x {r['tokens'] // r['cells']} | {adapter} | "
                      f"{r['trained_parameters']:,} | {100 * r['trained_parameters'] / total:.2f} % | "
                      f"{megabytes(r['state_bytes'])} | {megabytes(r['weights_bytes'])} | "
                      f"{megabytes(r['activation_bytes'])} | {megabytes(r['scratch_bytes'])} | "
                      f"{megabytes(r['peak_rss'])} | {r['ms']:,.0f} | {r['ms'] / head:.2f} |",
                      flush=True)
    if args.quick:
        return
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root,
                            capture_output=True, text=True).stdout.strip()
    context = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
               "cpu": rows[0]["cpu"], "threads": args.threads, "commit": commit,
               "command": " ".join(["tools/bench --adapters", *args.backbones]), "load_avg": os.getloadavg()}
    with open(args.out, "w") as file:
        json.dump({"context": context, "steps": rows}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
