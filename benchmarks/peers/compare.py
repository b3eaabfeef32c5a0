# SPDX-License-Identifier: Apache-2.0
"""Runs scgraft and PyTorch side by side and says which promises hold; called by tools/bench --peers.

  compare.py [NAME...] [--quick] [--rounds N] [--threads N] [--out DIR]

NAME: step, dropout, embed, tokens, startup, geneformer, scbert, scfoundation; default: all. --quick takes tiny shapes and writes
nothing: a test of the harness, not of speed. Writes DIR/peers_<name>.json (benchmarks/results).
Nothing is timed before both sides gave the same answer.
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from session import QUIET, Failed, Session, run, summary

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "benchmarks" / "peers"
OURS = ROOT / "build" / "cpu" / "benchmarks" / "whole_bench"
PROGRAM = ROOT / "build" / "cpu" / "app" / "scgraft"
AGREEMENT = 1e-4


def python(script, *arguments):
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def ours(command, **options):
    return [str(OURS), command] + [str(x) for k, v in options.items()
                                   for x in ("--" + k.replace("_", "-"), v)]


def expect(ok, text):
    if not ok:
        raise Failed(f"the two sides differ, nothing is timed: {text}")
    print(f"same answer: {text}", file=sys.stderr)


class Comparison:
    def __init__(self, name, args, folder):
        self.name, self.args, self.folder = name, args, folder
        self.session = Session(args.threads, args.rounds, args.retries, 60 * args.wait)
        self.entries, self.gates, self.facts = {}, [], {}

    def add(self, runs, cells=0):
        for name, of in runs.items():
            self.entries[name] = summary(name, of, cells)

    def time(self, name):
        return self.entries[name]["real_time"]

    def gate(self, text, value, wanted, at_least=True):
        self.gates.append({"gate": text, "value": value, "wanted": wanted,
                           "met": value >= wanted if at_least else value <= wanted})

    def floor(self, runs, gflop, gflop_bf16_peak=None):
        """Time the needed products take at the best rate measured in this session."""
        peak = max(r.get("peak_gflops_f32", 0) for of in runs.values() for r in of)
        self.facts.update(gflop_needed=gflop, peak_gflops_f32=peak)
        for name, entry in self.entries.items():
            rate = gflop_bf16_peak if gflop_bf16_peak and "bf16" in name else peak
            entry["floor"] = 1e3 * gflop / rate
            entry["pct_of_floor"] = 100 * entry["floor"] / entry["real_time"]
            entry["flops"] = 1e9 * gflop

    def report(self, command):
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT,
                                capture_output=True, text=True).stdout.strip()
        with open("/proc/cpuinfo") as file:
            cpu = next((line.split(":")[1].strip() for line in file if "model name" in line), "")
        context = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                   "cpu": cpu, "num_cpus": os.cpu_count(), "threads": self.args.threads,
                   "commit": commit, "command": command, "load_avg": os.getloadavg(),
                   "others_limit": QUIET, **self.facts}
        print(f"\n{self.name}   {cpu}, {self.args.threads} threads, {commit}\n  {command}")
        print(f"  {'variant':<24}{'ms':>10}{'p5':>10}{'p95':>10}{'floor':>9}{'of floor':>9}"
              f"{'peak MB':>9}{'others':>8}")
        for name, e in self.entries.items():
            floor = f"{e['floor']:>9.0f}{e['pct_of_floor']:>8.0f}%" if "floor" in e else " " * 18
            rss = f"{e['peak_rss'] / 1e6:>9.0f}" if "peak_rss" in e else " " * 9
            note = "" if e["rounds_agree"] else "  rounds differ by more than 10 %"
            print(f"  {name:<24}{e['real_time']:>10.1f}{e['p5']:>10.1f}{e['p95']:>10.1f}{floor}{rss}"
                  f"{100 * e['others_share']:>7.0f}%{note}")
        for g in self.gates:
            print(f"  {'met   ' if g['met'] else 'MISSED'} {g['gate']}: {g['value']:.3g} "
                  f"(wanted {g['wanted']:g})")
        if self.args.quick:
            return
        path = pathlib.Path(self.args.out) / f"peers_{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            json.dump({"context": context, "benchmarks": list(self.entries.values()),
                       "gates": self.gates}, file, indent=1)
            file.write("\n")
        print(f"  {path}")


def make_model(c, name, **cells):
    folder = f"{c.folder}/{name}"
    sizes = {"preset": "tiny", "vocab": 3000} if c.args.quick else {}
    run(ours("make", folder=folder, **sizes, **cells), c.args.threads)
    return folder


def memory_gates(c, name, eager, best):
    """Peak memory as it is, and without what importing PyTorch alone takes."""
    mine = c.entries[name]["peak_rss"]
    for peer, share, label in ((eager, 4, "eager"), (best, 2, "best")):
        entry = c.entries[peer]
        c.gate(f"peak memory of PyTorch {label} / ours", entry["peak_rss"] / mine, share)
        c.facts[f"memory_ratio_{label}_without_import"] = (
            (entry["peak_rss"] - entry["import_rss"]) / mine)


def check_step(c, folder, variants=("eager", "sdpa", "compile")):
    gradients = f"{folder}/gradients.safetensors"
    mine = run(ours("gradients", folder=folder, threads=c.args.threads, out=gradients),
               c.args.threads)
    for variant in variants:
        theirs = run(python("step.py", folder, variant, "--gradients", gradients), c.args.threads)
        loss = abs(theirs["loss"] - mine["loss"]) / abs(mine["loss"])
        expect(loss <= AGREEMENT and theirs["gradient_difference"] <= AGREEMENT,
               f"{variant}: loss {loss:.1e}, worst of {theirs['parameters']} gradients "
               f"{theirs['gradient_difference']:.1e} relative")


def step_commands(c, folder, variants):
    steps = ["--steps", c.args.steps, "--threads", c.args.threads]
    commands = {}
    for variant in variants:
        kind, _, which = variant.partition(" ")
        if kind == "scgraft":
            commands[variant] = ours("step", folder=folder, steps=c.args.steps,
                                     threads=c.args.threads, product=which)
        else:
            commands[variant] = python("step.py", folder, which, *steps)
    return commands


def compare_step(c):
    folder = make_model(c, "step", cells=8, genes=60 if c.args.quick else 600)
    check_step(c, folder)
    runs = c.session.interleave(step_commands(c, folder, [
        "scgraft f32", "torch eager", "scgraft bf16", "torch sdpa", "torch compile",
        "torch sdpa-bf16"]))
    c.add(runs, cells=8)
    first = runs["scgraft f32"][0]
    c.facts.update(gflop_dense=first["gflop_dense"], torch=runs["torch eager"][0]["torch"])
    c.floor(runs, first["gflop_needed"], max(r["peak_gflops_bf16"] for r in runs["scgraft bf16"]))
    best = min("torch eager", "torch sdpa", "torch compile", key=c.time)
    c.facts["best_peer"] = best
    c.gate("step: PyTorch eager / ours", c.time("torch eager") / c.time("scgraft f32"), 1.5)
    c.gate(f"step: best PyTorch ({best}) / ours", c.time(best) / c.time("scgraft f32"), 1.2)
    c.gate("step: our f32 / our bf16", c.time("scgraft f32") / c.time("scgraft bf16"), 1.3)
    c.facts["torch_bf16_over_our_bf16"] = c.time("torch sdpa-bf16") / c.time("scgraft bf16")
    memory_gates(c, "scgraft f32", "torch eager", best)


def compare_dropout(c):
    """The step with the dropout that the published models are trained with."""
    folder = make_model(c, "dropout", cells=8, genes=60 if c.args.quick else 600)
    check_step(c, folder)
    with open(f"{folder}/args.json") as file:
        sizes = json.load(file)
    with open(f"{folder}/args.json", "w") as file:
        json.dump({**sizes, "dropout": 0.2}, file)
    runs = c.session.interleave(step_commands(c, folder, [
        "scgraft f32", "torch eager", "torch sdpa", "torch compile"]))
    c.add(runs, cells=8)
    c.floor(runs, runs["scgraft f32"][0]["gflop_needed"])
    best = min("torch eager", "torch sdpa", "torch compile", key=c.time)
    c.facts["best_peer"] = best
    c.gate("step, dropout 0.2: PyTorch eager / ours",
           c.time("torch eager") / c.time("scgraft f32"), 1.5)
    c.gate(f"step, dropout 0.2: best PyTorch ({best}) / ours",
           c.time(best) / c.time("scgraft f32"), 1.2)
    memory_gates(c, "scgraft f32", "torch eager", best)


def compare_embed(c):
    cells = 40 if c.args.quick else 128
    folder = make_model(c, "embed", cells=cells, genes=100 if c.args.quick else 600, spread=1)
    reference = f"{folder}/embedding.safetensors"
    mine = run(ours("embed", folder=folder, threads=c.args.threads, out=reference), c.args.threads)
    expect(mine["same_bits"], "embeddings are the same bits for any batch, order and threads")
    repeats = 2 if c.args.rounds > 1 else 1
    commands = {}
    for product in ("f32", "bf16"):
        commands[f"scgraft {product}"] = ours("embed", folder=folder, threads=c.args.threads,
                                              repeats=repeats, product=product)
    for variant, batch in [("eager", 32), ("eager", 64), ("sdpa", 32), ("stock", 32),
                           ("sorted", 32)]:
        commands[f"torch {variant} {batch}"] = python("embed.py", folder, variant, "--batch", batch,
                                                      "--repeats", repeats, "--reference", reference)
    runs = c.session.interleave(commands)
    for name in (n for n in runs if n.startswith("torch")):  # the timed runs themselves
        worst = max(r["difference"] for r in runs[name])
        expect(worst <= AGREEMENT, f"{name}: embeddings {worst:.1e} relative")
    c.add(runs, cells=cells)
    first = runs["scgraft f32"][0]
    c.facts.update(cells=cells, tokens=first["tokens"], gflop_dense=first["gflop_dense"],
                   padded_tokens={n: r[0]["padded_tokens"] for n, r in runs.items() if "torch" in n})
    c.floor(runs, first["gflop_needed"])
    for entry in c.entries.values():
        if "bf16" in entry["name"]:
            del entry["floor"], entry["pct_of_floor"]
    eager = min("torch eager 32", "torch eager 64", key=c.time)
    best = min((n for n in c.entries if n.startswith("torch")), key=c.time)
    c.facts["best_peer"] = best
    c.gate(f"embed: {eager} / ours", c.time(eager) / c.time("scgraft f32"), 2)
    c.facts["best_over_ours"] = c.time(best) / c.time("scgraft f32")
    memory_gates(c, "scgraft f32", eager, best)


def compare_network_step(c, model, cells, genes, variants):
    """A LoRA step of another backbone; returns the runs."""
    folder = make_model(c, model, model=model, cells=cells, genes=genes)
    check_step(c, folder, [v.removeprefix("torch ") for v in variants])
    runs = c.session.interleave(step_commands(c, folder, [
        "scgraft f32", variants[0], "scgraft bf16", *variants[1:]]))
    c.add(runs, cells=cells)
    first = runs["scgraft f32"][0]
    c.facts.update(gflop_dense=first["gflop_dense"], torch=runs[variants[0]][0]["torch"])
    c.facts.update({key: first[key] for key in
                    ("weights_bytes", "activation_bytes", "scratch_bytes", "state_bytes")})
    c.floor(runs, first["gflop_needed"], max(r["peak_gflops_bf16"] for r in runs["scgraft bf16"]))
    return runs


def compare_geneformer(c):
    """V1-12L, 8 cells of 1,024 genes; transformers and PEFT on the other side."""
    compare_network_step(c, "geneformer", 2 if c.args.quick else 8, 63 if c.args.quick else 1023,
                         ["torch eager", "torch sdpa"])
    for variant, wanted in (("eager", 1.5), ("sdpa", 1.2)):
        c.gate(f"Geneformer step: PyTorch {variant} / ours",
               c.time(f"torch {variant}") / c.time("scgraft f32"), wanted)
    memory_gates(c, "scgraft f32", "torch eager", "torch sdpa")


def compare_scbert(c):
    """One cell of all 16,906 genes."""
    c.args.steps = min(c.args.steps, 3)
    compare_network_step(c, "scbert", 1, 199 if c.args.quick else 16906, ["torch eager"])
    c.gate("scBERT step: PyTorch / ours", c.time("torch eager") / c.time("scgraft f32"), 4)
    ours_rss, peer = c.entries["scgraft f32"]["peak_rss"], c.entries["torch eager"]
    c.gate("scBERT step: peak memory of PyTorch / ours", peer["peak_rss"] / ours_rss, 4)
    c.facts["memory_ratio_without_import"] = (peer["peak_rss"] - peer["import_rss"]) / ours_rss


def compare_scfoundation(c):
    """Embeddings of cells with 1,500 expressed genes. Published: one cell at a time."""
    cells = 4 if c.args.quick else 8
    folder = make_model(c, "scfoundation", model="scfoundation", cells=cells,
                        genes=60 if c.args.quick else 1501)
    reference = f"{c.folder}/embedding.safetensors"
    mine = run(ours("embed", folder=folder, threads=c.args.threads, out=reference), c.args.threads)
    expect(mine["same_bits"], "embeddings are the same bits for any batch, order and threads")
    commands = {f"scgraft {product}": ours("embed", folder=folder, threads=c.args.threads,
                                           repeats=1, product=product)
                for product in ("f32", "bf16")}
    for variant, batch in [("stock", 1), ("eager", 8), ("sdpa", 8)]:
        commands[f"torch {variant} {batch}"] = python("embed.py", folder, variant, "--batch", batch,
                                                      "--repeats", 1, "--reference", reference)
    runs = c.session.interleave(commands)
    for name in (n for n in runs if n.startswith("torch")):
        worst = max(r["difference"] for r in runs[name])
        expect(worst <= AGREEMENT, f"{name}: embeddings {worst:.1e} relative")
    c.add(runs, cells=cells)
    first = runs["scgraft f32"][0]
    c.facts.update(tokens=first["tokens"], torch=runs["torch stock 1"][0]["torch"])
    c.floor(runs, first["gflop_needed"])
    del c.entries["scgraft bf16"]["floor"], c.entries["scgraft bf16"]["pct_of_floor"]
    best = min((n for n in c.entries if n.startswith("torch")), key=c.time)
    c.facts.update(best_peer=best, best_over_ours=c.time(best) / c.time("scgraft f32"))
    c.gate("scFoundation embedding: PyTorch one cell at a time / ours",
           c.time("torch stock 1") / c.time("scgraft f32"), 2)
    memory_gates(c, "scgraft f32", "torch stock 1", best)


def compare_tokens(c):
    shape = (200, 3000, 500) if c.args.quick else (4000, 20000, 1000)
    file, vocab = f"{c.folder}/cells.h5ad", f"{c.folder}/vocab.json"
    run(python("tokens.py", file, vocab, "--make", *shape), c.args.threads)
    reference = f"{c.folder}/tokens.safetensors"
    run(ours("tokens", file=file, vocab=vocab, max_length=100000, out=reference), c.args.threads)
    checked = run(python("tokens.py", file, vocab, "--reference", reference), c.args.threads)
    expect(True, f"{checked['tokens']} tokens of {checked['cells']} cells: same genes, allowed bins")
    runs = c.session.interleave({
        "scgraft": ours("tokens", file=file, vocab=vocab, threads=c.args.threads, repeats=5),
        "python": python("tokens.py", file, vocab, "--repeats", 2, "--threads", c.args.threads)})
    c.add(runs, cells=shape[0])
    for key in ("tokens", "numpy", "scipy"):
        c.facts[key] = runs["python"][0][key]
    c.gate("h5ad to token batches: Python / ours", c.time("python") / c.time("scgraft"), 10)


def time_help(repeats):
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([str(PROGRAM), "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "others": 0.0}


def compare_startup(c):
    c.entries["scgraft --help"] = summary("scgraft --help", [time_help(40)])
    c.gate("scgraft --help, ms", c.time("scgraft --help"), 20, at_least=False)
    folder, published = make_model(c, "load"), f"{c.folder}/published"
    run(python("load.py", folder, "--make", published), c.args.threads)
    runs = c.session.interleave({
        "load safetensors": ours("load", folder=folder, repeats=5),
        "load best_model.pt": ours("load", folder=published, repeats=5),
        "torch.load": python("load.py", published)})
    c.add(runs)
    for name in ("load safetensors", "load best_model.pt"):
        c.gate(f"{name}, warm, ms", c.time(name), 1000, at_least=False)


COMPARISONS = {"step": compare_step, "dropout": compare_dropout, "embed": compare_embed,
               "tokens": compare_tokens, "startup": compare_startup,
               "geneformer": compare_geneformer, "scbert": compare_scbert,
               "scfoundation": compare_scfoundation}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--retries", type=int, default=2,
                        help="runs repeated when others used the machine")
    parser.add_argument("--wait", type=float, default=0, metavar="MINUTES",
                        help="wait for a quiet machine before runs, so long in each comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.steps, args.retries = 1, 2, 0
    unknown = [name for name in args.names if name not in COMPARISONS]
    if unknown:
        parser.error(f"no comparison is called {unknown[0]}; there are {', '.join(COMPARISONS)}")
    command = "tools/bench --peers " + " ".join(sys.argv[1:])
    try:
        for name in args.names or COMPARISONS:
            folder = tempfile.mkdtemp(prefix="scgraft-peers-")
            try:
                comparison = Comparison(name, args, folder)
                COMPARISONS[name](comparison)
                comparison.report(command.strip())
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except Failed as failure:
        sys.exit(f"compare: {failure}")


if __name__ == "__main__":
    main()
