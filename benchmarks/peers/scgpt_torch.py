# SPDX-License-Identifier: Apache-2.0
"""scGPT with LoRA in PyTorch, the other side of benchmarks/whole.

The network of the published checkpoints (post-norm encoder, continuous values, classification head
on the first row). Only LoRA and the head are trained; gradients come from autograd.

  attention "eager"  scores are materialised, as nn.TransformerEncoderLayer does in training
            "sdpa"   torch.nn.functional.scaled_dot_product_attention
"""
import json
import math
import resource
import struct

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
ALPHA, RANK = 16, 8


def read_safetensors(path):
    """Arrays over the mapped file, copied page by page only where they are written to."""
    data = np.memmap(path, dtype=np.uint8, mode="c")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    out = {}
    for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        array = data[begin:end].view(DTYPES[entry["dtype"]]) if end > begin else \
            np.empty(0, DTYPES[entry["dtype"]])
        out[name] = array.reshape(entry["shape"])
    return out


def peak_rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class LoraLinear(nn.Module):
    """Rows [begin, end) of a frozen weight beside a low-rank term."""

    def __init__(self, weight, bias, a, b):
        super().__init__()
        self.weight, self.bias = frozen(weight), None if bias is None else frozen(bias)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x):
        low = F.linear(F.linear(x, self.a), self.b)
        return F.linear(x, self.weight, self.bias) + (ALPHA / RANK) * low


def frozen(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def linear(tensors, name):
    out = nn.Linear(1, 1)
    out.weight, out.bias = frozen(tensors[name + ".weight"]), frozen(tensors[name + ".bias"])
    return out


def norm(tensors, name):
    out = nn.LayerNorm(tensors[name + ".weight"].shape[0], eps=1e-5)
    out.weight, out.bias = frozen(tensors[name + ".weight"]), frozen(tensors[name + ".bias"])
    return out


class Layer(nn.Module):
    def __init__(self, weights, start, index, heads, dropout, attention):
        super().__init__()
        path = f"transformer_encoder.layers.{index}."
        weight = weights[path + "self_attn.in_proj_weight"].chunk(3)
        bias = weights[path + "self_attn.in_proj_bias"].chunk(3)
        self.project = nn.ModuleList()
        for which, part in enumerate(("q_proj", "k_proj", "v_proj")):
            lora = f"base_model.model.{path}self_attn.{part}.lora_"
            if start and lora + "A.weight" in start:
                self.project.append(LoraLinear(weight[which], bias[which],
                                               start[lora + "A.weight"], start[lora + "B.weight"]))
            else:
                plain = nn.Linear(1, 1)
                plain.weight, plain.bias = frozen(weight[which]), frozen(bias[which])
                self.project.append(plain)
        self.out = linear(weights, path + "self_attn.out_proj")
        self.linear1, self.linear2 = linear(weights, path + "linear1"), linear(weights, path + "linear2")
        self.norm1, self.norm2 = norm(weights, path + "norm1"), norm(weights, path + "norm2")
        self.heads, self.p, self.attention = heads, dropout, attention

    def attend(self, q, k, v, mask):
        p = self.p if self.training else 0.0
        if self.attention == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1), p, self.training) @ v

    def forward(self, x, mask):
        cells, length, dim = x.shape
        q, k, v = (f(x).view(cells, length, self.heads, -1).transpose(1, 2) for f in self.project)
        o = self.attend(q, k, v, mask).transpose(1, 2).reshape(cells, length, dim)
        x = self.norm1(x + F.dropout(self.out(o), self.p, self.training))
        hidden = F.dropout(F.relu(self.linear1(x)), self.p, self.training)
        return self.norm2(x + F.dropout(self.linear2(hidden), self.p, self.training))


class Scgpt(nn.Module):
    """folder: args.json and model.safetensors; start.safetensors (LoRA, head) when `grafted`."""

    def __init__(self, folder, attention, grafted):
        super().__init__()
        with open(f"{folder}/args.json") as file:
            args = json.load(file)
        weights = as_tensors(f"{folder}/model.safetensors")
        start = as_tensors(f"{folder}/start.safetensors") if grafted else {}
        start = {name: value.clone() for name, value in start.items()}
        self.embedding = frozen(weights["encoder.embedding.weight"])
        self.gene_norm = norm(weights, "encoder.enc_norm")
        self.value1 = linear(weights, "value_encoder.linear1")
        self.value2 = linear(weights, "value_encoder.linear2")
        self.value_norm = norm(weights, "value_encoder.norm")
        self.p = args["dropout"]
        self.layers = nn.ModuleList(Layer(weights, start, i, args["nheads"], self.p, attention)
                                    for i in range(args["nlayers"]))
        self.head = nn.ModuleList()
        self.named = {}  # what is trained, by the names in start.safetensors
        if not grafted:
            return
        for i in range(args["n_layers_cls"] - 1):
            for part, make in ((3 * i, linear), (3 * i + 2, norm)):
                self.head.append(make(start, f"cls_decoder._decoder.{part}"))
                self.remember(f"cls_decoder._decoder.{part}")
        self.head.append(linear(start, "cls_decoder.out_layer"))
        self.remember("cls_decoder.out_layer")
        for i, layer in enumerate(self.layers):
            for part, module in zip("qkv", layer.project):
                if isinstance(module, LoraLinear):
                    path = f"base_model.model.transformer_encoder.layers.{i}.self_attn.{part}_proj."
                    self.named[path + "lora_A.weight"] = module.a
                    self.named[path + "lora_B.weight"] = module.b

    def remember(self, name):
        for part in ("weight", "bias"):
            parameter = getattr(self.head[-1], part)
            parameter.requires_grad_(True)
            self.named[f"{name}.{part}"] = parameter

    def encode(self, genes, values, mask):
        """genes, values [cells, length]; mask [cells, length] true where a token is, or None."""
        gene = self.gene_norm(F.embedding(genes, self.embedding))
        value = values.clamp(max=512).unsqueeze(-1)
        value = self.value_norm(self.value2(F.relu(self.value1(value))))
        x = gene + F.dropout(value, self.p, self.training)
        keys = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, keys)
        return x[:, 0]

    def forward(self, genes, values, mask):
        x = self.encode(genes, values, mask)
        for i in range(0, len(self.head) - 1, 2):
            x = self.head[i + 1](F.relu(self.head[i](x)))
        return self.head[-1](x)


def as_tensors(path):
    return {name: torch.from_numpy(array) for name, array in read_safetensors(path).items()}


class PackedCells:
    """cells.safetensors, cells one after the other."""

    def __init__(self, folder):
        data = read_safetensors(f"{folder}/cells.safetensors")
        self.genes, self.values, self.offsets = data["genes"], data["values"], data["offsets"]
        self.labels = torch.from_numpy(data["labels"].astype(np.int64))

    def __len__(self):
        return len(self.offsets) - 1

    def lengths(self):
        return np.diff(self.offsets)


class Cells(PackedCells):
    """Batches are padded to their longest cell, as scGPT's collator does."""

    def __init__(self, folder):
        super().__init__(folder)
        with open(f"{folder}/args.json") as file:
            args = json.load(file)
        with open(f"{folder}/vocab.json") as file:
            self.pad_id = json.load(file)[args["pad_token"]]
        self.pad_value = args["pad_value"]

    def batch(self, cells):
        lengths = self.lengths()[cells]
        genes = np.full((len(cells), lengths.max()), self.pad_id, np.int64)
        values = np.full(genes.shape, self.pad_value, np.float32)
        for row, cell in enumerate(cells):
            span = slice(self.offsets[cell], self.offsets[cell + 1])
            genes[row, : lengths[row]], values[row, : lengths[row]] = self.genes[span], self.values[span]
        mask = None
        if lengths.min() < lengths.max():
            mask = torch.from_numpy(genes != self.pad_id)
        return torch.from_numpy(genes), torch.from_numpy(values), mask


def load(folder, attention, grafted):
    return Scgpt(folder, attention, grafted), Cells(folder)
