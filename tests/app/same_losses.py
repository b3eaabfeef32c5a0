#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether two runs of tools/demo learn the same: same_losses.py FOLDER FOLDER NAME=TOLERANCE...

Compares the training losses of FOLDER/NAME/metrics.jsonl step by step; TOLERANCE is relative.
Exits with 1 when one differs by more, or when there are other steps or none.
"""
import json
import pathlib
import sys


def losses(folder, name):
    lines = pathlib.Path(folder, name, "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {e["step"]: e["loss"] for e in events if e["split"] == "train"}


def main(one, other, wanted):
    failed = False
    for name, tolerance in (pair.split("=") for pair in wanted):
        a, b = losses(one, name), losses(other, name)
        if not a or a.keys() != b.keys():
            print(f"FAIL {name}: steps {sorted(a)} and {sorted(b)}")
            failed = True
            continue
        worst = max(abs(a[step] - b[step]) / abs(b[step]) for step in b)
        verdict = "ok  " if worst <= float(tolerance) else "FAIL"
        failed |= verdict == "FAIL"
        print(f"{verdict} losses of {name}: {len(a)} steps, at most {100 * worst:.3f} % apart "
              f"(allowed {100 * float(tolerance):g} %)")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
