#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A layer includes itself and the layers below it; nothing points up or sideways."""
import pathlib
import re
import sys

BELOW = {
    "runtime": set(),
    "kernels": {"runtime"},
    "io": {"runtime"},
    "model": {"runtime", "kernels", "io"},
    "adapters": {"runtime", "kernels", "io", "model"},
    "training": {"runtime", "kernels", "io", "model", "adapters"},
    "app": {"runtime", "kernels", "io", "model", "adapters", "training"},
}
LAYERS = set(BELOW)
BELOW["tests"] = BELOW["benchmarks"] = LAYERS | {"tests", "benchmarks"}

root = pathlib.Path(__file__).resolve().parent.parent
include = re.compile(r'^\s*#\s*include\s+"([^"/]+)/', re.M)
wrong = []
files = 0
for layer, below in BELOW.items():
    for path in sorted((root / layer).rglob("*")):
        if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
            continue
        files += 1
        for target in include.findall(path.read_text()):
            if target in BELOW and target != layer and target not in below:
                wrong.append(f"{path.relative_to(root)} includes {target}/, which is not below {layer}/")
if wrong:
    print("\n".join(wrong))
    sys.exit(1)
print(f"layers: {files} files, every include points down")
