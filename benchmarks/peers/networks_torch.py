# SPDX-License-Identifier: Apache-2.0
"""Geneformer, scBERT and scFoundation with LoRA in PyTorch, as the folders of whole_bench say.

Geneformer is BertForSequenceClassification of transformers with PEFT's LoRA; scBERT and
scFoundation are the published networks, written out. Only LoRA and the head are trained.

  attention "eager"  as the published code computes it
            "sdpa"   torch.nn.functional.scaled_dot_product_attention (scBERT has no such form)
"""
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from scgpt_torch import ALPHA, RANK, LoraLinear, PackedCells, as_tensors, frozen, linear, norm


class Cells(PackedCells):
    """Cells that have one length each comparison."""

    def batch(self, cells):
        """genes, values [cells, length], no padding."""
        spans = [slice(self.offsets[c], self.offsets[c + 1]) for c in cells]
        return (torch.from_numpy(np.stack([self.genes[s] for s in spans]).astype(np.int64)),
                torch.from_numpy(np.stack([self.values[s] for s in spans])))


class Network(nn.Module):
    """named: what is trained, by the names in start.safetensors."""

    def __init__(self, folder, grafted):
        super().__init__()
        self.weights = as_tensors(f"{folder}/model.safetensors")
        start = as_tensors(f"{folder}/start.safetensors") if grafted else {}
        self.start = {name: value.clone() for name, value in start.items()}
        self.named = {}

    def projection(self, name, weight, bias):
        """A frozen projection, with LoRA where start.safetensors has it."""
        lora = f"base_model.model.{name}.lora_"
        if lora + "A.weight" in self.start:
            out = LoraLinear(weight, bias, self.start[lora + "A.weight"],
                             self.start[lora + "B.weight"])
            self.named[lora + "A.weight"], self.named[lora + "B.weight"] = out.a, out.b
            return out
        out = nn.Linear(1, 1, bias=bias is not None)
        out.weight = frozen(weight)
        out.bias = None if bias is None else frozen(bias)
        return out

    def head(self, name):
        """A trained linear layer of the head; frozen without start.safetensors."""
        out = linear(self.start or self.weights, name)
        if self.start:
            for part in ("weight", "bias"):
                self.named[f"{name}.{part}"] = getattr(out, part).requires_grad_(True)
        return out


class Geneformer(Network):
    def __init__(self, folder, attention, grafted):
        super().__init__(folder, grafted)
        from peft import LoraConfig, get_peft_model
        from transformers import BertConfig, BertForSequenceClassification
        words, positions = (self.weights[f"bert.embeddings.{kind}_embeddings.weight"]
                            for kind in ("word", "position"))
        layers = 1 + max(int(n.split(".")[3]) for n in self.weights if ".layer." in n)
        ffn = self.weights["bert.encoder.layer.0.intermediate.dense.weight"].shape[0]
        config = BertConfig(
            vocab_size=words.shape[0], hidden_size=words.shape[1], num_hidden_layers=layers,
            num_attention_heads=8, intermediate_size=ffn,
            hidden_act="relu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            max_position_embeddings=positions.shape[0], layer_norm_eps=1e-12, pad_token_id=0,
            num_labels=self.weights["classifier.weight"].shape[0], attn_implementation=attention)
        self.net = BertForSequenceClassification(config)
        state = {**self.weights, **{n: v for n, v in self.start.items() if ".lora_" not in n}}
        missing, unexpected = self.net.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ValueError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
        if not grafted:
            return
        self.net = get_peft_model(self.net, LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["query", "value"]))
        for name, parameter in self.net.named_parameters():
            name = name.replace(".default", "")
            short = name.removeprefix("base_model.model.")
            parameter.requires_grad_(name in self.start or short in self.start)
            if name in self.start:
                parameter.data.copy_(self.start[name])
                self.named[name] = parameter
            elif short in self.start:
                self.named[short] = parameter

    def forward(self, genes, values):
        return self.net(input_ids=genes).logits


class PerformerLayer(nn.Module):
    def __init__(self, net, path, heads):
        super().__init__()
        w, fn = net.weights, path + ".0.fn."
        self.norm1, self.norm2 = norm(w, path + ".0.norm"), norm(w, path + ".1.norm")
        self.q, self.k, self.v = (
            net.projection(fn + part, w[fn + part + ".weight"], None)
            for part in ("to_q", "to_k", "to_v"))
        self.out = linear(w, fn + "to_out")
        self.w1, self.w2 = linear(w, path + ".1.fn.fn.w1"), linear(w, path + ".1.fn.fn.w2")
        self.register_buffer("omega", w[fn + "fast_attention.projection_matrix"])
        self.heads = heads

    def features(self, x, keys):
        scale = x.shape[-1] ** -0.25
        u = torch.einsum("chnd,md->chnm", scale * x, self.omega)
        half = (x ** 2).sum(-1, keepdim=True) / 2 * scale ** 2
        top = u.amax((-1, -2, -3) if keys else -1, keepdim=True)
        return self.omega.shape[0] ** -0.5 * (torch.exp(u - half - top) + 1e-4)

    def forward(self, x):
        cells, length, _ = x.shape
        n = self.norm1(x)
        q, k, v = (f(n).view(cells, length, self.heads, -1).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        q, k = self.features(q, False), self.features(k, True)
        mass = 1 / torch.einsum("chnm,chm->chn", q, k.sum(-2))
        sums = torch.einsum("chnm,chnd->chmd", k, v)
        o = torch.einsum("chmd,chnm,chn->chnd", sums, q, mass)
        x = x + self.out(o.transpose(1, 2).reshape(cells, length, -1))
        return x + self.w2(F.gelu(self.w1(self.norm2(x))))


class Scbert(Network):
    def __init__(self, folder, attention, grafted):
        super().__init__(folder, grafted)
        w = self.weights
        self.tokens, self.places = frozen(w["token_emb.weight"]), frozen(w["pos_emb.emb.weight"])
        layers = 1 + max(int(n.split(".")[3]) for n in w if ".layers." in n)
        width = w["performer.net.layers.0.0.fn.fast_attention.projection_matrix"].shape[1]
        heads = w["performer.net.layers.0.0.fn.to_q.weight"].shape[0] // width
        self.layers = nn.ModuleList(PerformerLayer(self, f"performer.net.layers.{i}", heads)
                                    for i in range(layers))
        self.norm = norm(w, "norm")
        self.conv1, self.fc1, self.fc2, self.fc3 = (
            self.head(f"to_out.{part}") for part in ("conv1", "fc1", "fc2", "fc3"))

    def forward(self, genes, values):
        x = F.embedding(genes, self.tokens) + self.places[: genes.shape[1]]
        for layer in self.layers:
            x = layer(x)
        z = F.relu(self.conv1(self.norm(x))).squeeze(-1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(z)))))


class PostNormLayer(nn.Module):
    def __init__(self, net, path, heads, attention):
        super().__init__()
        w = net.weights
        weight = w[path + "self_attn.in_proj_weight"].chunk(3)
        bias = w[path + "self_attn.in_proj_bias"].chunk(3)
        self.q, self.k, self.v = (
            net.projection(f"{path}self_attn.{part}_proj", weight[i], bias[i])
            for i, part in enumerate("qkv"))
        self.out = linear(w, path + "self_attn.out_proj")
        self.linear1, self.linear2 = linear(w, path + "linear1"), linear(w, path + "linear2")
        self.norm1, self.norm2 = norm(w, path + "norm1"), norm(w, path + "norm2")
        self.heads, self.attention = heads, attention

    def forward(self, x):
        cells, length, dim = x.shape
        q, k, v = (f(x).view(cells, length, self.heads, -1).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        if self.attention == "sdpa":
            o = F.scaled_dot_product_attention(q, k, v)
        else:
            o = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        x = self.norm1(x + self.out(o.transpose(1, 2).reshape(cells, length, dim)))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Scfoundation(Network):
    """attention "stock": the layers as torch.nn.TransformerEncoder, as published; not grafted."""

    def __init__(self, folder, attention, grafted):
        super().__init__(folder, grafted)
        w = self.weights
        self.mlp, self.mlp2 = linear(w, "token_emb.mlp"), linear(w, "token_emb.mlp2")
        self.bins, self.places = frozen(w["token_emb.emb.weight"]), frozen(w["pos_emb.weight"])
        layers = 1 + max(int(n.split(".")[2]) for n in w if ".transformer_encoder." in n)
        self.norm = norm(w, "encoder.norm")
        path = "encoder.transformer_encoder."
        if attention == "stock":
            dim = self.bins.shape[1]
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(dim, 12, 4 * dim, batch_first=True, dropout=0.0)
                for _ in range(layers))
            state = {n.removeprefix(path): v for n, v in w.items() if n.startswith(path)}
            self.layers.load_state_dict(state)
        else:
            self.layers = nn.ModuleList(PostNormLayer(self, f"{path}{i}.", 12, attention)
                                        for i in range(layers))
        self.fc1, self.fc2 = self.head("fc1.0"), self.head("fc1.2")

    def embed(self, genes, values):
        z = F.leaky_relu(self.mlp(values.unsqueeze(-1)), 0.1)
        x = (z + self.mlp2(z)).softmax(-1) @ self.bins + F.embedding(genes, self.places)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        genes = x[:, :-2]
        return torch.cat([x[:, -1], x[:, -2], genes.amax(1), genes.mean(1)], 1)

    def forward(self, genes, values):
        return self.fc2(F.relu(self.fc1(self.embed(genes, values))))


NETWORKS = {"geneformer": Geneformer, "scbert": Scbert, "scfoundation": Scfoundation}


def load(folder, attention, grafted):
    with open(f"{folder}/sizes.json") as file:
        model = json.load(file)["model"]
    return NETWORKS[model](folder, attention, grafted), Cells(folder)
