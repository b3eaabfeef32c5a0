# SPDX-License-Identifier: Apache-2.0
"""Cell embeddings in PyTorch for all cells of a file: of scGPT the first row of the last layer.

  embed.py FOLDER VARIANT [--batch N] [--repeats N] [--reference FILE]

VARIANT
  eager   batches in file order, padded to their longest cell; scores materialised
  sdpa    the same with scaled_dot_product_attention
  stock   the same through torch.nn.TransformerEncoder in evaluation mode: its fused inference path
  sorted  sdpa, cells sorted by length first: the least padding batches can have
Networks other than scGPT take cells of one length and have no `sorted`.
--reference also compares with the embeddings of whole_bench.
Prints one JSON object.
"""
import argparse
import json
import pathlib
import time

import numpy as np
import torch
from torch import nn

import networks_torch
from scgpt_torch import Cells, Scgpt, peak_rss, read_safetensors


def load_other(folder, variant):
    """(cells, embedding of numbered cells) of the networks of networks_torch."""
    net, cells = networks_torch.load(folder, variant, grafted=False)
    net.eval()
    return cells, lambda numbers: net.embed(*cells.batch(numbers))


def stock_encoder(net):
    """The layers of `net` as PyTorch's own encoder, over the same weights."""
    dim, heads = net.embedding.shape[1], net.layers[0].heads
    hidden = net.layers[0].linear1.weight.shape[0]
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, batch_first=True)
    encoder = nn.TransformerEncoder(layer, len(net.layers), enable_nested_tensor=True)
    for to, of in zip(encoder.layers, net.layers):
        with torch.no_grad():
            to.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in of.project]))
            to.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in of.project]))
        to.self_attn.out_proj.weight, to.self_attn.out_proj.bias = of.out.weight, of.out.bias
        for name in ("linear1", "linear2", "norm1", "norm2"):
            setattr(to, name, getattr(of, name))
    return encoder.eval()


def load_scgpt(folder, variant):
    cells = Cells(folder)
    net = Scgpt(folder, "eager" if variant == "eager" else "sdpa", grafted=False).eval()
    if variant != "stock":
        return cells, lambda numbers: net.encode(*cells.batch(numbers))
    encoder = stock_encoder(net)
    net.layers = nn.ModuleList()

    def embed(numbers):
        genes, values, mask = cells.batch(numbers)
        gene = net.gene_norm(nn.functional.embedding(genes, net.embedding))
        value = net.value1(values.clamp(max=512).unsqueeze(-1)).relu()
        x = gene + net.value_norm(net.value2(value))
        return encoder(x, src_key_padding_mask=None if mask is None else ~mask)[:, 0]

    return cells, embed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("variant", choices=["eager", "sdpa", "stock", "sorted"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import_rss = peak_rss()
    scgpt = not pathlib.Path(args.folder, "sizes.json").exists()
    cells, embed = (load_scgpt if scgpt else load_other)(args.folder, args.variant)

    order = np.arange(len(cells))
    if args.variant == "sorted":
        order = np.argsort(cells.lengths(), kind="stable")
    seconds, slots = [], 0
    with torch.inference_mode():
        first = embed(order[: min(8, len(order))])
        out = np.empty((len(cells), first.shape[1]), np.float32)
        for _ in range(args.repeats):
            begin = time.perf_counter()
            slots = 0
            for first in range(0, len(order), args.batch):
                numbers = order[first : first + args.batch]
                out[numbers] = embed(numbers).numpy()
                slots += len(numbers) * int(cells.lengths()[numbers].max())
            seconds.append(time.perf_counter() - begin)
    result = {"seconds": seconds, "padded_tokens": slots, "peak_rss": peak_rss(),
              "import_rss": import_rss, "torch": torch.__version__}
    if args.reference:
        want = read_safetensors(args.reference)["embedding"]
        result["difference"] = float(np.abs(out - want).max() / np.abs(want).max())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
