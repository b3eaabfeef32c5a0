#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads files that scgraft wrote with anndata and h5py. Usage: read_back.py WRITE_SAMPLES"""
import pathlib
import subprocess
import sys
import tempfile
import warnings

SKIPPED = 77
try:
    import anndata
    import h5py
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
except ImportError as error:
    print(f"skipped: {error}. Install anndata, or name a Python that has it in SCGRAFT_PYTHON")
    sys.exit(SKIPPED)
warnings.simplefilter("ignore")


def same_array(a, b, where):
    if sp.issparse(a):
        assert sp.issparse(b) and a.shape == b.shape, where
        a, b = a.toarray(), b.toarray()
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype, (where, a.dtype, b.dtype)
    if a.dtype.kind == "f":
        assert np.array_equal(a, b, equal_nan=True), where
    else:
        assert np.array_equal(a, b), where


def same(a, b, where):
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, obj=where)
    elif isinstance(a, pd.api.extensions.ExtensionArray):
        pd.testing.assert_extension_array_equal(a, b)
    elif isinstance(a, dict) or hasattr(a, "items"):
        assert set(a) == set(b), (where, set(a), set(b))
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (str, bool)):
        assert type(a) is type(b) and a == b, (where, a, b)
    else:
        same_array(a, b, where)


def same_adata(a, b, where):
    same(a.obs, b.obs, f"{where}: obs")
    same(a.var, b.var, f"{where}: var")
    if a.X is None:
        assert b.X is None, where
    else:
        same_array(a.X, b.X, f"{where}: X")
    for part in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        same(dict(getattr(a, part)), dict(getattr(b, part)), f"{where}: {part}")


def through_anndata(adata, folder):
    """Python can write what it read, and reads it as the same."""
    path = folder / "again.h5ad"
    adata.write_h5ad(path)
    same_adata(adata, anndata.read_h5ad(path), "written again")


def check_created(folder):
    adata = anndata.read_h5ad(folder / "created.h5ad")
    assert adata.shape == (7, 4)
    want = np.zeros((7, 4), "f4")
    want[np.arange(7), np.arange(7) % 4] = np.arange(7) + 1
    assert isinstance(adata.X, (sp.csr_matrix, getattr(sp, "csr_array", sp.csr_matrix)))
    same_array(adata.X.toarray(), want, "created: X")
    assert list(adata.obs_names) == [f"cell{i}" for i in range(7)]
    assert list(adata.obs.columns) == ["type", "note", "total", "score", "good"]
    assert list(adata.obs.type.cat.categories) == ["B", "T"] and not adata.obs.type.cat.ordered
    assert list(adata.obs.type.cat.codes) == [i % 3 - 1 for i in range(7)]
    assert list(adata.obs.note) == [f"n\u00f6te {i}" for i in range(7)]
    same_array(adata.obs.total.values, np.arange(1, 8, dtype="i8"), "created: total")
    same_array(adata.obs.score.values, np.arange(7) / 4, "created: score")
    same_array(adata.obs.good.values, np.arange(7) % 2 == 0, "created: good")
    assert list(adata.var_names) == ["CD3D", "LYZ", "MS4A1", "ACTB"]
    assert list(adata.var.gene_id) == ["ENSG1", "ENSG2", "ENSG3", ""]
    backed = anndata.read_h5ad(folder / "created.h5ad", backed="r")
    same_array(backed[2:5].X.toarray(), want[2:5], "created: backed X")
    backed.file.close()
    with h5py.File(folder / "created.h5ad") as file:
        assert file["X/data"].compression == "gzip" and file["X/indptr"].dtype == "i4"
        assert file["obs/type/codes"].dtype == "i1"
    through_anndata(adata, folder)


def check_simulated(folder):
    for name, cells in (("atlas", 60), ("shifted", 40)):
        adata = anndata.read_h5ad(folder / "sim" / f"{name}.h5ad")
        assert adata.shape == (cells, 1200), adata.shape
        same_array(np.asarray(adata.X.sum(1)).ravel(), adata.obs.n_counts.values.astype("f4"),
                   "simulated: n_counts")
        assert adata.obs.cell_type.dtype == "category" and adata.var.index.is_unique
        assert len(adata.obs.cell_type.cat.categories) == 6
        through_anndata(adata, folder)


def check_annotations(before, path):
    """The new elements are right and everything else is as it was."""
    after = anndata.read_h5ad(path)
    n, genes = after.shape
    number = np.arange(n)
    new = ["sg_label", "sg_conf", "sg_number", "sg_text", "sg_good"]
    assert list(after.obs.columns) == list(before.obs.columns) + new
    label = after.obs.sg_label
    assert list(label.cat.categories) == ["z last", "a first", "\u00e9"]
    assert list(label.cat.codes) == [i % 4 - 1 for i in range(n)]
    same_array(after.obs.sg_conf.values, (number / 8).astype("f4"), "sg_conf")
    same_array(after.obs.sg_number.values, number + 2**40, "sg_number")
    assert list(after.obs.sg_text) == [f"\u03b1{i}" for i in range(n)]
    same_array(after.obs.sg_good.values, number % 2 == 1, "sg_good")
    same_array(after.var.sg_in_model.values, np.ones(genes, bool), "sg_in_model")
    same_array(after.obsm["X_sg"], np.arange(3 * n, dtype="f4").reshape(n, 3), "X_sg")
    frame = after.obsm["sg_probabilities"]
    assert list(frame.columns) == ["B", "T"] and list(frame.index) == list(after.obs_names)
    same_array(frame.values, np.arange(2 * n, dtype="f4").reshape(n, 2), "sg_probabilities")
    same_array(after.varm["sg_genes"], np.full((genes, 1), 2, "f4"), "sg_genes")
    uns = after.uns["sg"]
    assert uns["version"] == "0.1.0" and uns["base"]["sha256"] == "ab12"
    assert uns["seed"] == 7 and uns["rate"] == 0.5 and bool(uns["exact"]) is True
    assert list(uns["names"]) == ["a", "b"] and list(uns["sizes"]) == [1, 2]
    assert list(after.uns["sg_label_colors"]) == ["#ff0000", "#00ff00", "#0000ff"]
    again = path.parent / "again.h5ad"
    after.write_h5ad(again)
    same_adata(after, anndata.read_h5ad(again), "written again")

    after.obs = after.obs.drop(columns=new)
    del after.var["sg_in_model"], after.obsm["X_sg"], after.obsm["sg_probabilities"]
    del after.varm["sg_genes"], after.uns["sg"], after.uns["sg_label_colors"]
    same_adata(before, after, "untouched")
    if before.raw is not None:
        same_array(before.raw.X, after.raw.X, "raw.X")
        same(before.raw.var, after.raw.var, "raw.var")


def stored_alike(a, b, path=""):
    """Bytes, types, chunks, filters and attributes of what both files have."""
    assert set(a.attrs) == set(b.attrs), (path, set(a.attrs), set(b.attrs))
    for name in a.attrs:
        # Column order grows; a reference is another number in another file.
        if name not in ("column-order", "categories"):
            assert np.array_equal(a.attrs[name], b.attrs[name]), (path, name)
    if isinstance(a, h5py.Dataset):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert a.chunks == b.chunks and a.compression == b.compression, path
        if a.shape is not None and a.dtype.kind != "V":
            assert np.array_equal(a[()], b[()], equal_nan=a.dtype.kind == "f"), path
        return
    for name in a:
        stored_alike(a[name], b[name], f"{path}/{name}")


def rich():
    """An AnnData with everything that anndata itself stores."""
    random = np.random.default_rng(0)
    n, genes = 30, 12
    counts = random.poisson(0.7, (n, genes)).astype("f4")
    adata = anndata.AnnData(sp.csr_matrix(counts))
    adata.obs_names = [f"c{i}" for i in range(n)]
    adata.var_names = [f"g{i}" for i in range(genes)]
    adata.raw = adata
    adata.obs["label"] = pd.Categorical([["b", "a", None][i % 3] for i in range(n)])
    adata.obs["stage"] = pd.Categorical([i % 2 for i in range(n)], ordered=True)
    adata.obs["age"] = np.arange(n, dtype="i4")
    adata.obs["ratio"] = np.where(np.arange(n) % 5 == 0, np.nan, 0.5)
    adata.layers["csc"] = sp.csc_matrix(counts)
    adata.layers["dense"] = counts.astype("f8")
    adata.obsm["X_pca"] = random.normal(size=(n, 4))
    adata.obsm["frame"] = pd.DataFrame({"x": np.arange(n)}, index=adata.obs_names)
    adata.obsp["near"] = sp.csr_matrix(np.eye(n))
    adata.varm["loadings"] = random.normal(size=(genes, 2))
    adata.uns["params"] = {"a": 1, "b": "text", "c": {"d": np.arange(3.0)}}
    adata.uns["names"] = np.array(["x", "y"])
    return adata


def main():
    program = sys.argv[1]
    print("anndata", anndata.__version__, "h5py", h5py.__version__, "pandas", pd.__version__)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([program, "create", name], check=True)
        check_created(folder)
        check_simulated(folder)
        rich().write_h5ad(folder / "rich.h5ad", compression="gzip")
        inputs = [folder / "created.h5ad", folder / "rich.h5ad"]
        # Files of other programs and of older versions, where this machine has them.
        inputs += [pathlib.Path(path) for path in sys.argv[2:]]
        for path in inputs:
            if not path.exists():
                print("not on this machine:", path)
                continue
            try:
                before = anndata.read_h5ad(path)
            except Exception as error:  # an old anndata does not read every file
                print("this anndata cannot read", path.name, "-", repr(error)[:100])
                continue
            out = folder / "annotated.h5ad"
            subprocess.run([program, "annotate", str(path), str(out)], check=True)
            check_annotations(before, out)
            with h5py.File(path) as a, h5py.File(out) as b:
                stored_alike(a, b)
            print("read back", path.name)


main()
