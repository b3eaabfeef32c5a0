# SPDX-License-Identifier: Apache-2.0
"""From .h5ad to padded token batches as a Python script for scGPT does it, with NumPy and SciPy.

  tokens.py FILE VOCAB [--max-length N] [--repeats N] [--reference FILE]
  tokens.py FILE VOCAB --make CELLS GENES EXPRESSED      write FILE and VOCAB with random counts

Genes the vocabulary does not have are dropped, cells scaled to 1e4, log1p, each cell's values
binned by its own quantiles with np.digitize (a value on several edges goes to one of their bins at
random), zeros dropped, <cls> put in front, longer cells sampled, batches of 32 padded.
--reference checks the tokens of whole_bench (written with --max-length above the longest cell):
the same genes, and each bin among those that the edges allow.
Prints one JSON object.
"""
import argparse
import json
import sys
import time

import h5py
import numpy as np
import scipy
import scipy.sparse as sp
import torch

from scgpt_torch import peak_rss, read_safetensors

N_BINS, BATCH, PAD_VALUE = 51, 32, -2


def make(path, vocab_path, cells, genes, expressed):
    """Counts with a long tail, most of them 1, as droplets give; cells of different depth."""
    random = np.random.default_rng(1)
    rate = np.clip(random.lognormal(0, 1, genes), 0.02, 20)
    depth = random.lognormal(0, 0.4, cells)
    rows = []
    for cell in range(cells):
        chance = np.minimum(0.95, rate * depth[cell] * expressed / genes / rate.mean())
        columns = np.flatnonzero(random.random(genes) < chance).astype(np.int32)
        rows.append((columns, np.floor(1 / (1 - 0.99 * random.random(len(columns))))))
    indptr = np.cumsum([0] + [len(columns) for columns, _ in rows])
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, count, prefix in (("obs", cells, "cell"), ("var", genes, "GENE")):
            frame = file.create_group(name)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0",
                                "_index": "_index"})
            frame.attrs.create("column-order", [], dtype=text)
            index = frame.create_dataset("_index", data=[f"{prefix}{i}" for i in range(count)],
                                         dtype=text)
            index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([cells, genes], np.int64)
        x.create_dataset("data", data=np.concatenate([v for _, v in rows]).astype(np.float32))
        x.create_dataset("indices", data=np.concatenate([c for c, _ in rows]))
        x.create_dataset("indptr", data=indptr)
    tokens = [f"GENE{i}" for i in range(0, genes) if i % 20] + ["<pad>", "<cls>", "<eoc>"]
    with open(vocab_path, "w") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file)


def read(path, vocab):
    with h5py.File(path) as file:
        x = file["X"]
        matrix = sp.csr_matrix((x["data"][:], x["indices"][:], x["indptr"][:]),
                               shape=tuple(x.attrs["shape"]))
        names = file["var/_index"].asstr()[:]
    ids = np.array([vocab.get(name, -1) for name in names])
    return matrix[:, ids >= 0], ids[ids >= 0]


def normalised(matrix):
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    scaled = sp.diags((1e4 / np.maximum(totals, 1e-12)).astype(np.float32)) @ matrix
    return scaled.log1p()


def edges_of(values):
    return np.quantile(values, np.linspace(0, 1, N_BINS - 1))


def binned_row(row, random):
    expressed = row.nonzero()[0]
    out = np.zeros_like(row)
    if len(expressed) == 0:
        return out
    values = row[expressed]
    edges = edges_of(values)
    low = np.digitize(values, edges)
    high = np.digitize(values, edges, right=True)
    out[expressed] = np.ceil(random.random(len(values)) * (high - low) + low)
    return out


def token_batches(matrix, ids, vocab, max_length, random):
    dense = matrix.toarray()
    binned = np.stack([binned_row(row, random) for row in dense])
    cells = []
    for row in binned:
        columns = np.nonzero(row)[0]
        genes = np.insert(ids[columns], 0, vocab["<cls>"])
        values = np.insert(row[columns], 0, 0)
        cells.append((torch.from_numpy(genes).long(), torch.from_numpy(values).float()))
    for first in range(0, len(cells), BATCH):
        group = cells[first : first + BATCH]
        width = min(max_length, max(len(genes) for genes, _ in group))
        out_genes = torch.full((len(group), width), vocab["<pad>"])
        out_values = torch.full((len(group), width), float(PAD_VALUE))
        for i, (genes, values) in enumerate(group):
            if len(genes) > width:
                kept = random.choice(len(genes) - 1, width - 1, replace=False) + 1
                kept = torch.from_numpy(np.insert(kept, 0, 0))
                genes, values = genes[kept], values[kept]
            out_genes[i, : len(genes)] = genes
            out_values[i, : len(values)] = values
        yield out_genes, out_values


def check(path, vocab, reference):
    matrix, ids = read(path, vocab)
    want = read_safetensors(reference)
    rows = normalised(matrix)
    rows.sort_indices()
    if len(want["offsets"]) != rows.shape[0] + 1:
        sys.exit("another number of cells")
    for cell in range(rows.shape[0]):
        span = slice(want["offsets"][cell] + 1, want["offsets"][cell + 1])
        row = slice(rows.indptr[cell], rows.indptr[cell + 1])
        if not np.array_equal(want["genes"][span], ids[rows.indices[row]]):
            sys.exit(f"cell {cell}: other genes")
        values = rows.data[row]
        edges = edges_of(values)
        bins = want["values"][span]
        # log1p differs in the last bit between libraries, which moves a value across an edge it
        # lies on: edges count as equal within a few roundings.
        slack = 4e-7 * np.abs(values) + 1e-9
        least = np.searchsorted(edges, values - slack, side="left")
        most = np.searchsorted(edges, values + slack, side="right")
        if (bins < np.minimum(least + 1, most)).any() or (bins > most).any():
            sys.exit(f"cell {cell}: a bin that its edges do not allow")
    return {"cells": rows.shape[0], "tokens": int(want["offsets"][-1])}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("vocab")
    parser.add_argument("--make", type=int, nargs=3)
    parser.add_argument("--max-length", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.make:
        make(args.file, args.vocab, *args.make)
        print("{}")
        return
    with open(args.vocab) as file:
        vocab = json.load(file)
    if args.reference:
        print(json.dumps(check(args.file, vocab, args.reference)))
        return
    import_rss = peak_rss()
    seconds, cells, tokens = [], 0, 0
    for repeat in range(args.repeats):
        begin = time.perf_counter()
        cells = tokens = 0
        matrix, ids = read(args.file, vocab)
        random = np.random.RandomState(repeat)
        for genes, _ in token_batches(normalised(matrix), ids, vocab, args.max_length, random):
            cells += len(genes)
            tokens += int((genes != vocab["<pad>"]).sum())
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "cells": cells, "tokens": tokens,
                      "peak_rss": peak_rss(), "import_rss": import_rss,
                      "numpy": np.__version__, "scipy": scipy.__version__}))


if __name__ == "__main__":
    main()
