#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Adapters between scgraft and Python's peft, both ways. Usage: peft_round_trip.py SCGRAFT

`tools/setup peft` makes a Python with torch, transformers and peft in .venv/peft; the test uses it.
"""
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

SKIPPED = 77
own = pathlib.Path(__file__).resolve().parents[2] / ".venv/peft/bin/python"
if own.exists() and pathlib.Path(sys.prefix) != own.parents[1] and "SCGRAFT_PYTHON" not in os.environ:
    os.execv(own, [str(own), *sys.argv])
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                  TRANSFORMERS_VERBOSITY="error")
warnings.simplefilter("ignore")
try:
    import h5py
    import numpy as np
    import peft
    import torch
    import transformers
    from peft import (HRAConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model,
                      get_peft_model_state_dict)
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForSequenceClassification, BertModel
except ImportError as error:
    print(f"skipped: {error}. tools/setup peft installs what is needed")
    sys.exit(SKIPPED)

PROGRAM = sys.argv[1]
LIMIT = 1e-5
CLASSES, TOKENS = 4, 24
worst = 0.0


def scgraft(*arguments, code=0, said=""):
    done = subprocess.run([PROGRAM, *map(str, arguments), "--json"], capture_output=True, text=True)
    assert done.returncode == code, (arguments, done.returncode, done.stderr)
    document = json.loads(done.stdout)
    assert said in done.stderr + done.stdout, (said, done.stderr)
    return document["result"] if code == 0 else document["error"]


def close(got, want, where):
    global worst
    got, want = np.asarray(got, "f8"), np.asarray(want, "f8")
    assert got.shape == want.shape, (where, got.shape, want.shape)
    apart = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    worst = max(worst, apart)
    assert apart <= LIMIT, (where, apart)


def genes_of(folder):
    with h5py.File(folder / "atlas.h5ad") as file:
        index = file["var"][file["var"].attrs["_index"]][()]
    return [name.decode() if isinstance(name, bytes) else name for name in index]


def randomise(model, seed=1, scale=0.2):
    """Values that do something, where peft starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "hra_u" in name or "oft_R" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale


class Geneformer:
    """A tiny BertForSequenceClassification in a folder, with dictionaries, and some cells."""

    def __init__(self, folder, genes):
        self.path = folder / "geneformer"
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(genes) + 2, hidden_size=16, num_hidden_layers=2,
                            num_attention_heads=2, intermediate_size=32, hidden_act="relu",
                            max_position_embeddings=310, num_labels=CLASSES, initializer_range=0.3)
        BertForSequenceClassification(config).eval().save_pretrained(
            self.path, safe_serialization=True)
        tokens = {"<pad>": 0, "<mask>": 1, **{gene: i + 2 for i, gene in enumerate(genes)}}
        (self.path / "token_dictionary.json").write_text(json.dumps(tokens))
        (self.path / "gene_median_dictionary.json").write_text(json.dumps(dict.fromkeys(genes, 1.5)))
        self.ids = torch.randint(2, len(tokens), (3, TOKENS))
        self.mask = torch.ones_like(self.ids)
        self.mask[1, 17:] = 0
        self.inputs = folder / "tokens.npz"
        np.savez(self.inputs, input_ids=self.ids.numpy(), attention_mask=self.mask.numpy())

    def load(self, kind=BertForSequenceClassification):
        return kind.from_pretrained(self.path).eval()

    def logits(self, model):
        with torch.no_grad():
            return model(input_ids=self.ids, attention_mask=self.mask).logits.numpy()

    def merged(self, adapter, folder):
        """What scgraft computes with the adapter in the weights, and these weights."""
        scgraft("adapter", "merge", adapter, "--model", self.path, "-o", folder / "merged", "--force",
                "--allow-base-mismatch")
        return self.traced(folder / "merged"), load_file(folder / "merged/model.safetensors")

    def traced(self, model):
        """What scgraft computes with a folder."""
        out = self.inputs.with_name("trace.npz")
        scgraft("trace", "--model", model, "--inputs", self.inputs, "-o", out, "--force")
        with np.load(out) as arrays:
            return arrays["logits"]


def same_weights(want, got, where):
    """The module's tensors against those of a file, which has no tied copies."""
    for name, tensor in got.items():
        close(tensor.numpy(), want[name].detach().numpy(), f"{where}: {name}")


def from_peft(geneformer, folder):
    """Adapters that peft saved compute the same here."""
    all_dense = ["query", "key", "value", "attention.output.dense", "intermediate.dense",
                 "encoder.layer.0.output.dense"]
    cases = {
        "r1": LoraConfig(r=1, lora_alpha=3, target_modules=["query", "value"]),
        "r8": LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]),
        "rslora": LoraConfig(r=8, lora_alpha=2, target_modules=all_dense, use_rslora=True),
        "regex": LoraConfig(r=2, target_modules=r".*layer\.1\.attention\.self\.(query|key)"),
        "layers": LoraConfig(r=2, target_modules=["value"], layers_to_transform=[1]),
        "patterns": LoraConfig(r=4, lora_alpha=8, target_modules=all_dense,
                               rank_pattern={"value": 2, "layer.1.attention.self.query": 7},
                               alpha_pattern={"key": 1}),
        "head": LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"),
        "hra": HRAConfig(r=4, target_modules=["query", "intermediate.dense"]),
        "oft": OFTConfig(r=0, oft_block_size=4, target_modules=["query", "intermediate.dense"],
                         use_cayley_neumann=False),
    }
    (folder / "labels.txt").write_text("".join(f"type {i}\n" for i in range(CLASSES)))
    for name, config in cases.items():
        model = get_peft_model(geneformer.load(), config).eval()
        randomise(model)
        path = folder / f"from-{name}"
        model.save_pretrained(path)
        imported = folder / f"imported-{name}"
        labels = ["--labels", folder / "labels.txt"] if name == "head" else []
        result = scgraft("adapter", "import", path, "--model", geneformer.path, "-o", imported, *labels)
        assert result["type"] == (name if name in ("hra", "oft") else "lora"), result
        assert len(result["trained"]) == (2 if name == "head" else 0), result
        logits, weights = geneformer.merged(imported, folder)
        close(logits, geneformer.logits(model), name)
        assert np.abs(logits - geneformer.logits(geneformer.load())).max() > 1e-2, name
        # Also without being imported first.
        direct, _ = geneformer.merged(path, folder) if name != "head" else (logits, None)
        close(direct, logits, f"{name}, direct")
        if name in ("r8", "hra"):  # as older versions of peft do by themselves
            older = folder / f"older-{name}"
            model.save_pretrained(older, safe_serialization=False)
            assert (older / "adapter_model.bin").exists() and not list(older.glob("*.safetensors"))
            old, _ = geneformer.merged(older, folder)
            assert np.array_equal(old, direct), f"{name}, adapter_model.bin"
        same_weights(model.merge_and_unload().state_dict(), weights, name)
        print("from peft:", name)

    # An adapter of the bare BertModel, whose paths have no "bert." in front.
    model = get_peft_model(geneformer.load(BertModel), LoraConfig(r=2, target_modules=["key"])).eval()
    randomise(model)
    model.save_pretrained(folder / "bare")
    _, weights = geneformer.merged(folder / "bare", folder)
    want = {f"bert.{name}": tensor for name, tensor in model.merge_and_unload().state_dict().items()}
    same_weights(want, {k: v for k, v in weights.items() if k.startswith("bert.")}, "bare")


def shards(geneformer, folder):
    """A model that transformers wrote in several files is the same to the bit, and none without one."""
    path = folder / "shards"
    geneformer.load().save_pretrained(path, max_shard_size="10KB")
    for dictionary in geneformer.path.glob("*_dictionary.json"):
        (path / dictionary.name).write_text(dictionary.read_text())
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 1 and not (path / "model.safetensors").exists(), files
    whole = geneformer.traced(geneformer.path)
    assert np.array_equal(geneformer.traced(path), whole)
    close(whole, geneformer.logits(BertForSequenceClassification.from_pretrained(path).eval()), "shards")
    files[1].unlink()
    scgraft("trace", "--model", path, "--inputs", geneformer.inputs, "-o", folder / "never.npz", code=11,
            said=files[1].name)
    print("shards:", len(files))


def refusals(geneformer, folder):
    """What peft would load in silence, or cannot be computed here, ends with 11."""
    model = get_peft_model(geneformer.load(), LoraConfig(r=2, target_modules=["query", "key"]))
    path = folder / "good"
    model.save_pretrained(path)
    tensors = load_file(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())

    def changed(new_tensors, new_config, said):
        bad = folder / "bad"
        bad.mkdir(exist_ok=True)
        save_file(new_tensors, bad / "adapter_model.safetensors", {"format": "pt"})
        (bad / "adapter_config.json").write_text(json.dumps(new_config))
        scgraft("adapter", "import", bad, "--model", geneformer.path, "-o", folder / "never",
                code=11, said=said)
        assert not (folder / "never").exists()

    key = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_"
    without = {k: v for k, v in tensors.items() if not k.startswith(key)}
    changed(without, config, key + "A.weight is missing")
    changed({k: v for k, v in tensors.items() if k != key + "B.weight"}, config,
            key + "B.weight is missing")
    changed({**tensors, "base_model.model.bert.gate.weight": torch.ones(2)}, config,
            "base_model.model.bert.gate.weight has no place")
    changed(tensors, {**config, "r": 3}, "the backbone needs [3, 16]")
    changed(tensors, {**config, "modules_to_save": ["pooler"]}, "bert.pooler.dense.weight is missing")
    changed(tensors, {**config, "use_dora": True}, "use_dora")
    changed(tensors, {**config, "peft_type": "VERA"}, "VERA")
    changed(tensors, {**config, "init_lora_weights": "pissa"}, "init_lora_weights")
    # Only what PEFT itself needs, and a key from the future.
    thin = {"peft_type": "LORA", "target_modules": ["query", "key"], "r": 2, "invented_later": 1}
    (path / "adapter_config.json").write_text(json.dumps(thin))
    scgraft("adapter", "import", path, "--model", geneformer.path, "-o", folder / "thin",
            said="W-ADAPTER-CONFIG")
    print("refusals: as they should be")


def to_peft(geneformer, folder):
    """Adapters that were trained here compute the same in peft."""
    for name, more in {
        "lora1": ["--adapter", "lora", "-s", "adapter.r=1"],
        "lora8": ["--adapter", "lora", "-s", "adapter.r=8", "-s",
                  "adapter.target_modules=[q,k,v,out,ffn_in,ffn_out]"],
        "hra": ["--adapter", "hra", "-s", "adapter.r=4"],
        "oft": ["--adapter", "oft", "-s", "adapter.block_size=4"],
    }.items():
        scgraft("train", "--model", geneformer.path, "--data", folder / "atlas.h5ad", "--label-key",
                "cell_type", "-o", folder / f"run-{name}", "-s", "train.max_steps=20", "-s",
                "train.lr=0.01", "--progress", "none", "-t", "1", *more)
        adapter, path = folder / f"run-{name}/adapter", folder / f"to-{name}"
        exported = scgraft("adapter", "export", adapter, "-o", path)
        model = PeftModel.from_pretrained(geneformer.load(), path).eval()
        state = get_peft_model_state_dict(model)
        assert set(state) == set(exported["tensors"]), set(state) ^ set(exported["tensors"])
        saved = load_file(path / "adapter_model.safetensors")
        for key, tensor in state.items():
            assert torch.equal(tensor, saved[key]), key
        logits, weights = geneformer.merged(adapter, folder)
        close(logits, geneformer.logits(model), name)
        frozen = geneformer.logits(geneformer.load())
        assert np.abs(logits - frozen).max() > 1e-3, (name, "training changed nothing")
        same_weights(model.merge_and_unload().state_dict(), weights, name)
        # The merged folder is one of transformers too, with the names of the classes.
        again = BertForSequenceClassification.from_pretrained(folder / "merged").eval()
        close(geneformer.logits(again), logits, f"{name}, merged")
        assert len(again.config.id2label) == CLASSES and "LABEL_0" not in again.config.label2id
        # Back again.
        labels = json.loads((adapter / "labels.json").read_text())["classes"]
        (folder / "names.txt").write_text("".join(f"{label}\n" for label in labels))
        scgraft("adapter", "import", path, "--model", geneformer.path, "-o", folder / f"back-{name}",
                "--labels", folder / "names.txt")
        close(geneformer.merged(folder / f"back-{name}", folder)[0], logits, f"{name}, back")
        print("to peft:", name)
    scgraft("train", "--model", geneformer.path, "--data", folder / "atlas.h5ad", "--label-key",
            "cell_type", "-o", folder / "run-token", "-s", "train.max_steps=1", "--progress", "none",
            "-t", "1", "--adapter", "token")
    error = scgraft("adapter", "export", folder / "run-token/adapter", "-o", folder / "never", code=11,
                    said="token")
    assert "adapter merge" in error["hint"], error


def prefix_tuning(geneformer, folder):
    """Keys and values in front of each layer's: embeddings here and in peft, both ways."""
    with h5py.File(folder / "atlas.h5ad") as file:
        x = file["X"]
        rows = np.zeros((x["indptr"].shape[0] - 1, len(genes_of(folder))))
        for i, (begin, end) in enumerate(zip(x["indptr"][:-1], x["indptr"][1:])):
            rows[i, x["indices"][begin:end]] = x["data"][begin:end]

    def here(adapter):
        out = folder / "embedded.h5ad"
        scgraft("embed", folder / "atlas.h5ad", "--adapter", adapter, "--model", geneformer.path,
                "--embedding", "cls", "-o", out, "--force", "--allow-base-mismatch", "--progress",
                "none", "-t", "1")
        with h5py.File(out) as file:
            return file["obsm/X_geneformer"][()]

    def probabilities(adapter):
        out = folder / "annotated.h5ad"
        scgraft("annotate", folder / "atlas.h5ad", "--adapter", adapter, "--model", geneformer.path,
                "--key-added", "K", "-o", out, "--progress", "none", "-t", "1")
        with h5py.File(out) as file:
            table = file["obsm/K_probabilities"]
            return np.stack([table[name][()] for name in table.attrs["column-order"]], 1)

    def there(path, base, what):
        model = PeftModel.from_pretrained(base, path).eval()
        found = []
        for row in rows:  # all medians are the same: ranks are those of counts, ties by column
            order = np.argsort(-row, kind="stable")[: np.count_nonzero(row)]
            ids = torch.from_numpy(order + 2)[None]
            with torch.no_grad():
                found.append(what(model(input_ids=ids, attention_mask=torch.ones_like(ids))))
        return np.stack(found)

    def first_row(out):
        return out.last_hidden_state[0, 0].numpy()

    scgraft("train", "--model", geneformer.path, "--data", folder / "atlas.h5ad", "--label-key",
            "cell_type", "-o", folder / "run-prefix", "-s", "train.max_steps=20", "-s",
            "train.lr=0.05", "--progress", "none", "-t", "1", "--adapter", "prefix_tuning", "-s",
            "adapter.tokens=5")
    trained = folder / "run-prefix/adapter"
    scgraft("adapter", "export", trained, "-o", folder / "to-prefix")
    close(there(folder / "to-prefix", geneformer.load(), lambda out: out.logits[0].softmax(0).numpy()),
          probabilities(trained), "prefix-tuning to peft")
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    model = get_peft_model(geneformer.load(BertModel), config)
    for name, parameter in model.named_parameters():
        if "prompt_encoder" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder / "from-prefix")
    scgraft("adapter", "import", folder / "from-prefix", "--model", geneformer.path, "-o",
            folder / "imported-prefix")
    got = here(folder / "imported-prefix")
    scgraft("annotate", folder / "atlas.h5ad", "--adapter", folder / "imported-prefix", "-o",
            folder / "never.h5ad", code=11, said="no head for classes")
    close(got, there(folder / "from-prefix", geneformer.load(BertModel), first_row),
          "prefix-tuning from peft")
    # Back again.
    scgraft("adapter", "export", folder / "imported-prefix", "-o", folder / "again-prefix")
    close(got, there(folder / "again-prefix", geneformer.load(BertModel), first_row),
          "prefix-tuning to peft, no head")
    assert np.abs(got - here(trained)).max() > 1e-2
    print("prefix-tuning: both ways")


def module_tree(weights):
    """Modules under the names of a published scGPT file: linear layers where PEFT may attach."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        at = root
        for i, part in enumerate(path):
            if not hasattr(at, part):
                leaf = i + 1 == len(path)
                prefix = ".".join(path)
                linear = leaf and last == "weight" and tensor.ndim == 2
                at.add_module(part, torch.nn.Linear(tensor.shape[1], tensor.shape[0],
                                                    f"{prefix}.bias" in weights)
                              if linear else torch.nn.Module())
            at = getattr(at, part)
        at.register_parameter(last, torch.nn.Parameter(tensor.clone()))
    root.forward = lambda x: x
    return root


def scgpt(folder):
    """Query, key and value, one module Wqkv in scGPT, go through as one pair."""
    base = folder / "scgpt"
    scgraft("pretrain", "--data", folder / "atlas.h5ad", "--preset", "tiny", "-o", base, "-s",
            "train.max_steps=1", "--progress", "none", "-t", "1")
    ours = load_file(base / "model.safetensors")
    weights = {name.replace("in_proj_", "Wqkv."): tensor for name, tensor in sorted(
        ours.items(), key=lambda entry: not entry[0].endswith("weight"))}
    merged = folder / "merged-scgpt"

    def compare(model, adapter, where):
        scgraft("adapter", "merge", adapter, "--model", base, "-o", merged, "--force",
                "--allow-base-mismatch")
        want = {name.replace("Wqkv.", "in_proj_"): tensor
                for name, tensor in model.merge_and_unload().state_dict().items()}
        got = load_file(merged / "model.safetensors")
        same_weights(want, {k: v for k, v in got.items() if k in ours}, where)
        name = "transformer_encoder.layers.1.self_attn.in_proj_weight"
        assert (got[name] - ours[name]).abs().max() > 1e-3, where

    for name, targets in {"q and v": "[q,v]", "all": "[q,k,v,out,ffn_in,ffn_out]"}.items():
        run = folder / f"run-scgpt-{len(targets)}"
        scgraft("train", "--model", base, "--data", folder / "atlas.h5ad", "--label-key", "cell_type",
                "-o", run, "-s", "train.max_steps=20", "-s", "train.lr=0.01", "--progress", "none",
                "-t", "1", "-s", f"adapter.target_modules={targets}")
        path = folder / f"to-scgpt-{len(targets)}"
        exported = scgraft("adapter", "export", run / "adapter", "-o", path)
        head = {key.removeprefix("base_model.model."): tensor for key, tensor in
                load_file(path / "adapter_model.safetensors").items() if "cls_decoder" in key}
        tree = module_tree({**{k: v for k, v in weights.items() if "cls_decoder" not in k}, **head})
        model = PeftModel.from_pretrained(tree, path)
        state = get_peft_model_state_dict(model)
        assert set(state) == set(exported["tensors"]), set(state) ^ set(exported["tensors"])
        pairs = [key for key in state if key.endswith("Wqkv.lora_A.weight")]
        assert pairs and not any("q_proj" in key for key in state), state.keys()
        compare(model, run / "adapter", f"scGPT to peft, {name}")
        # The same adapter back from peft.
        scgraft("adapter", "import", path, "--model", base, "-o", folder / f"back-{len(targets)}",
                "--labels", run / "adapter/labels.json")
        compare(PeftModel.from_pretrained(module_tree({**weights, **head}), path),
                folder / f"back-{len(targets)}", f"scGPT and back, {name}")
        print("scGPT:", name)
    targets = r"transformer_encoder\..*\.(Wqkv|linear1)"  # the value encoder has a linear1 too
    model = get_peft_model(module_tree(weights), LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    randomise(model)
    model.save_pretrained(folder / "from-scgpt")
    compare(model, folder / "from-scgpt", "scGPT from peft")
    print("scGPT: from peft")


def main():
    print("torch", torch.__version__, "transformers", transformers.__version__, "peft",
          peft.__version__)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scgraft("simulate", "-o", folder / "sim", "--cells", "60", "--genes", "300", "--types",
                str(CLASSES), "--depth", "400", "--progress", "none")
        (folder / "sim/atlas.h5ad").rename(folder / "atlas.h5ad")
        geneformer = Geneformer(folder, genes_of(folder))
        shards(geneformer, folder)
        from_peft(geneformer, folder)
        refusals(geneformer, folder)
        to_peft(geneformer, folder)
        prefix_tuning(geneformer, folder)
        scgpt(folder)
    print(f"largest relative difference {worst:.1e}")


main()
