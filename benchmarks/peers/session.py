# SPDX-License-Identifier: Apache-2.0
"""Fresh processes in turn (A B A B), and what else the machine did meanwhile."""
import json
import os
import resource
import statistics
import subprocess
import sys
import time

QUIET = 0.05  # share of the machine that others may use during a valid run


class Failed(Exception):
    pass


def busy_seconds():
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(command, threads):
    """The JSON a command prints, with `others`: the share of all processors used by others."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    busy, own, begin = busy_seconds(), children_seconds(), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.monotonic() - begin
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    used = busy_seconds() - busy - (children_seconds() - own)
    result["others"] = round(max(0.0, used) / max(wall, 1e-9) / os.cpu_count(), 3)
    return result


class Session:
    """Collects the runs of named variants. wait_s: how long to wait for a quiet machine in all."""

    def __init__(self, threads, rounds, retries, wait_s):
        self.threads, self.rounds, self.retries, self.wait_s = threads, rounds, retries, wait_s

    def wait_until_quiet(self):
        while self.wait_s > 0:
            busy, begin = busy_seconds(), time.monotonic()
            time.sleep(3)
            wall = time.monotonic() - begin
            if busy_seconds() - busy < QUIET * wall * os.cpu_count():
                return
            self.wait_s -= wall

    def quiet_run(self, name, command):
        best = None
        for _ in range(1 + self.retries):
            self.wait_until_quiet()
            result = run(command, self.threads)
            if best is None or result["others"] < best["others"]:
                best = result
            print(f"  {name}: median {1e3 * statistics.median(result['seconds']):.1f} ms, others used "
                  f"{100 * result['others']:.0f} % of the machine", file=sys.stderr)
            if best["others"] <= QUIET:
                break
        return best

    def interleave(self, commands):
        """commands: {variant: command} -> {variant: [result of each round]}."""
        results = {name: [] for name in commands}
        for _ in range(self.rounds):
            for name, command in commands.items():
                results[name].append(self.quiet_run(name, command))
        return results


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def summary(name, runs, cells=0):
    """One entry in the layout of Google Benchmark."""
    samples = [s for r in runs for s in r["seconds"]]
    medians = [statistics.median(r["seconds"]) for r in runs]
    entry = {"name": name, "run_name": name, "run_type": "iteration", "iterations": len(samples),
             "real_time": 1e3 * statistics.median(samples), "time_unit": "ms",
             "best": 1e3 * min(samples), "p5": 1e3 * percentile(samples, 0.05), "p95": 1e3 * percentile(samples, 0.95),
             "round_medians": [1e3 * m for m in medians],
             "rounds_agree": max(medians) <= 1.1 * min(medians),
             "others_share": max(r["others"] for r in runs)}
    if cells:
        entry["cells_per_second"] = cells / statistics.median(samples)
    for key in ("peak_rss", "import_rss"):
        if key in runs[0]:
            entry[key] = max(r[key] for r in runs)
    return entry
