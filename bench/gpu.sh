#!/usr/bin/env bash
# Everything that needs a GPU, in one run: builds, tests, sanitizes and times this tree.
#
#   bench/gpu.sh [VENV]   the python of that environment, else the one on PATH; it needs torch
#
#   NAME=...              folder in bench/results; default: the name of the GPU
#   PYTEST='-k graphs -x' more arguments for the tests
#   SKIP='build bench'    steps to leave out
#   CUSTOMLOSS_CUDA=0     builds no compiled CUDA kernels, so that Triton's are tested
#
# A step that fails does not stop the later ones. The exit status is the sum over the failed steps:
# 1 build, 2 tests, 4 memcheck, 8 racecheck, 16 synccheck, 32 bench; 64: torch sees no GPU.
set -euo pipefail
python=${1:+$(cd "$1" && pwd)/bin/}python
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=0
summary=()

skipped() { [[ " ${SKIP:-} " == *" $1 "* ]]; }

# step NAME STATUS COMMAND...: runs COMMAND, logs what it prints, and records whether it failed
step() {
  local name=$1 status=$2 log=$out/$1.log
  shift 2
  if skipped "$name"; then
    summary+=("$name: left out")
    return
  fi
  printf '\n==== %s: %s\n' "$name" "$*"
  if "$@" 2>&1 | tee "$log"; then
    summary+=("$name: passed, $log")
  else
    failed=$((failed + status))
    summary+=("$name: FAILED, $log")
  fi
}

build() {
  rm -f customloss/_C_cuda.abi3.so customloss/_C_cuda.cpython-*.so
  "$python" -m pip install -q 'setuptools>=77' ninja &&
    "$python" -m pip install --no-build-isolation -e '.[test,demo,bench]' &&
    "$python" -c 'import customloss; print(customloss.build_info())'
}

# a run in which every test was skipped counts as failed
tests() {
  "$python" -m pytest -m cuda -o junit_family=xunit2 --junit-xml="$out/tests.xml" "$@" &&
    "$python" - "$out/tests.xml" <<'PYTHON'
import sys
import xml.etree.ElementTree as tree

suites = tree.parse(sys.argv[1]).getroot().iter("testsuite")
counts = [(int(suite.get("tests")), int(suite.get("skipped"))) for suite in suites]
ran = sum(tests - skipped for tests, skipped in counts)
print(f"{ran} tests ran, {sum(skipped for _, skipped in counts)} were skipped")
sys.exit(ran == 0)
PYTHON
}

# every tensor is an allocation of its own, so that an access beyond its end is seen
sanitized() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --error-exitcode 9 \
    "$python" -m pytest -m cuda -p no:cacheprovider -o timeout=3600 \
    tests/backends/test_gpu_values.py -k 'few_of_everything or strides'
}

bench() {
  "$python" -m customloss bench --full --device cuda --json "$results/bench.json"
}

mkdir -p out
out=$(mktemp -d out/gpu.XXXXXX)
step build 1 build

if ! kind=$("$python" -c 'import torch
assert torch.cuda.is_available()
from customloss._bench import machine
print(machine.describe(torch.device("cuda"))["kind"])' 2>"$out/device.log"); then
  cat "$out/device.log" >&2
  echo "$python: no torch, no customloss or no GPU; see $out" >&2
  exit $((failed + 64))
fi
name=${NAME:-$kind}
results=bench/results/$name
mkdir -p "$results"

# PYTEST is unquoted on purpose, so that it is split into words
# shellcheck disable=SC2086
step tests 2 tests ${PYTEST:-}
sanitizer=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin command -v compute-sanitizer || true)
if [[ -n $sanitizer ]]; then
  step memcheck 4 sanitized memcheck
  step racecheck 8 sanitized racecheck
  step synccheck 16 sanitized synccheck
else
  summary+=("memcheck, racecheck, synccheck: no compute-sanitizer was found")
fi
step bench 32 bench

printf '\n==== %s, %s\n' "$kind" "$python"
printf '%s\n' "${summary[@]}"
echo "results: $results ($(find "$results" -type f | wc -l) files), logs: $out"
exit "$failed"
