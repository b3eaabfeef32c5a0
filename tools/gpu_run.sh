#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests and times scgraft on this machine's GPU. Lies in a folder that tools/gpu made.
#   ./run.sh OUT.json [tests] [sanitizer] [benchmarks]      default: all three, in this order
# doctor says what the machine has. Tests: every suite in a process of its own. Sanitizer: the tests
# on the GPU again under compute-sanitizer's memcheck and racecheck; skipped where it is not
# installed (COMPUTE_SANITIZER names it, otherwise PATH or /usr/local/cuda). Benchmarks: every kernel
# against the floor of this GPU, then whole steps of LoRA training of scGPT's published size.
# OUT.json has it all; OUT.json.logs/ what every program printed.
# Ends with 1 when something failed or nothing could run on a GPU.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 1 ] || { sed -n '3,9s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
out=$1
shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests sanitizer benchmarks)
for part in "${parts[@]}"; do
  [[ $part =~ ^(tests|sanitizer|benchmarks)$ ]] || { echo "no part is called $part" >&2; exit 2; }
done
logs=$out.logs
mkdir -p "$logs" || exit 2
export SCGRAFT_TEST_DATA=$here/data SCGRAFT_PROGRAM=$here/bin/scgraft OMP_WAIT_POLICY=passive
if [ ! -x "$here/bin/scgraft" ]; then
  rm -rf "$here/unpacking" "$here/lib"
  mkdir "$here/unpacking" && tar -C "$here/unpacking" -xzf "$here/programs.tar.gz" &&
    mv "$here/unpacking/lib" "$here/unpacking/bin" "$here" && rmdir "$here/unpacking" || exit 2
fi
mapfile -t suites < <("$here/bin/gpu_tests" --gtest_list_tests | sed -n 's/^\([A-Za-z0-9_/]*\)\.\( .*\)\?$/\1/p')
[ ${#suites[@]} -gt 0 ] || { echo "$here/bin/gpu_tests has no tests" >&2; exit 1; }
failed=0
rows=()  # of the JSON document

# row PART NAME VERDICT SECONDS [JSON]: a line of the table and an object of the document.
row() {
  printf '%-10s %-34s %-8s %6s s  %s\n' "$1" "$2" "$3" "$4" "${6:-}"
  rows+=("{\"part\": \"$1\", \"name\": \"$2\", \"verdict\": \"$3\", \"seconds\": $4${5:+, $5}}")
  if [ "$3" = FAIL ]; then failed=1; fi
}

# run LOG COMMAND...: its exit code in $code, its seconds in $seconds.
run() {
  local log=$logs/$1 begin=$SECONDS
  shift
  timeout 1200 "$@" >"$log" 2>&1
  code=$?
  seconds=$((SECONDS - begin))
}

# number PATTERN LOG: the number in the last line of a test's log that matches, or 0.
number() { grep -E "$1" "$logs/$2" | tail -n 1 | grep -oE '[0-9]+' | head -n 1 | grep . || echo 0; }

# test_row PART SUITE LOG: what a suite's log says.
test_row() {
  local passed skipped broken verdict=ok
  passed=$(number '^\[  PASSED  \]' "$3")
  broken=$(number '^\[  FAILED  \] [0-9]+ test' "$3")
  skipped=$(number '^\[  SKIPPED \] [0-9]+ test' "$3")
  if [ "$code" -ne 0 ]; then
    verdict=FAIL
  elif [ "$passed" -eq 0 ]; then
    verdict=skipped
  fi
  row "$1" "$2" "$verdict" "$seconds" \
    "\"exit\": $code, \"passed\": $passed, \"failed\": $broken, \"skipped\": $skipped" \
    "$passed passed, $broken failed, $skipped skipped"
}

doctor=$("$here/bin/scgraft" doctor --json) || failed=1
"$here/bin/scgraft" doctor
device=yes
if ! "$here/bin/scgraft" doctor --device cuda >"$logs/doctor.log" 2>&1; then
  device=no
  failed=1
  tail -n 2 "$logs/doctor.log"
fi

run_tests() {
  local suite log
  for suite in "${suites[@]}"; do
    log=${suite//\//.}.log
    run "$log" "$here/bin/gpu_tests" --gtest_filter="$suite.*"
    test_row tests "$suite" "$log"
  done
}

run_sanitizer() {
  local tool=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
  local check suite log filter
  for check in memcheck racecheck; do
    if [ ! -x "$tool" ] || [ "$device" = no ]; then
      row "$check" all skipped 0 "" "no $([ -x "$tool" ] && echo GPU || echo compute-sanitizer)"
      continue
    fi
    for suite in "${suites[@]}"; do
      # Of a suite that runs on several devices, what runs on this one.
      filter="$suite.*cuda*"
      [[ $suite =~ Device|Gpu|Fragments ]] && filter="$suite.*"
      "$here/bin/gpu_tests" --gtest_filter="$filter" --gtest_list_tests | grep -q '^  ' || continue
      log=${suite//\//.}.$check.log
      run "$log" "$tool" --tool "$check" --error-exitcode 9 "$here/bin/gpu_tests" --gtest_filter="$filter"
      test_row "$check" "$suite" "$log"
    done
  done
}

run_benchmarks() {
  local shape cells genes product folder name result
  if [ "$device" = no ]; then
    row benchmarks kernels skipped 0 "" "no GPU"
  else
    SCGRAFT_BENCH_DEVICE=cuda run kernels.log "$here/bin/kernel_bench" --benchmark_counters_tabular=true \
      --benchmark_min_time=0.2 --benchmark_out="$logs/kernels.json" --benchmark_out_format=json
    if [ "$code" -eq 0 ] && [ -s "$logs/kernels.json" ]; then
      row benchmarks kernels ok "$seconds" "\"result\": $(cat "$logs/kernels.json")" "$logs/kernels.log"
    else
      row benchmarks kernels FAIL "$seconds" "" "$logs/kernels.log"
    fi
  fi
  for shape in 64x1200 8x600; do
    cells=${shape%x*} genes=${shape#*x} folder=$logs/inputs-$shape
    if [ "$device" = no ]; then
      row benchmarks "step-$shape" skipped 0 "" "no GPU"
      continue
    fi
    run "make-$shape.log" "$here/bin/whole_bench" make --folder "$folder" --cells "$cells" --genes "$genes"
    for product in f32 bf16; do
      name=step-$shape-$product
      run "$name.log" "$here/bin/whole_bench" step --folder "$folder" --device cuda \
        --product "$product" --warmup 5 --steps 20
      result=$(grep -E '^\{.*\}$' "$logs/$name.log" | tail -n 1)
      if [ "$code" -eq 0 ] && [ -n "$result" ]; then
        row benchmarks "$name" ok "$seconds" "\"result\": $result" \
          "$(sed 's/.*"median_ms":\([0-9.]*\).*/\1 ms a step/' <<<"$result")"
      else
        row benchmarks "$name" FAIL "$seconds" "" "$logs/$name.log"
      fi
    done
    rm -rf "$folder"
  done
}

for part in "${parts[@]}"; do "run_$part"; done
{
  printf '{"schema": "scgraft/gpu/1", "gpu": %s, "ok": %s,\n' \
    "$([ $device = yes ] && echo true || echo false)" "$([ $failed = 0 ] && echo true || echo false)"
  printf ' "doctor": %s,\n "runs": [\n' "${doctor:-null}"
  for ((i = 0; i < ${#rows[@]}; ++i)); do
    printf '  %s%s\n' "${rows[i]}" "$([ $((i + 1)) -lt ${#rows[@]} ] && echo ,)"
  done
  printf ' ]}\n'
} >"$out" || exit 2
if [ $device = no ]; then echo "no test ran on a GPU: this machine has none that can be used"; fi
echo "$([ $failed = 0 ] && echo ok || echo FAIL): $out"
exit $failed
