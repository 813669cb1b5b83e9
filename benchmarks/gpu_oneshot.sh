#!/usr/bin/env bash
# Everything that a GPU can tell about this checkout, in nine minutes: build, smoke, tests,
# sanitizers, benchmarks, latency of streams, tuning.
#
#   benchmarks/gpu_oneshot.sh [--device cuda|cpu] [--dry-run] [OUTPUT_FOLDER]
#
# Needs python3 with torch, Triton, pytest, pytest-xdist and numpy, nvcc, cmake and ninja; downloads
# nothing.
# Results stand in OUTPUT_FOLDER (default: gpu_oneshot) after each stage, so that a stop loses only
# the stage it falls into. A stage that fails, or reaches its limit, does not stop the others; time
# that one leaves is the next one's. The checkout itself stays as it is.
#
#   --dry-run     the same script with tiny sizes, in minutes of one CPU core
#   PYTHON        the interpreter; default: python3
#   TDNET_WHEELS  a folder of wheels to use for packages that the machine lacks
#   TDNET_SECONDS of all stages together; default: 530, in a dry run 3600
set -uo pipefail

self=$(readlink -f "${BASH_SOURCE[0]}")
repository=$(dirname "$(dirname "$self")")
python=${PYTHON:-python3}
device=cuda dry=no out=gpu_oneshot stage=

usage() {
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$self" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --device) device=${2:-} && shift ;;
    --dry-run) dry=yes ;;
    --stage) stage=${2:-} && shift ;;  # used by this script: one stage, in its own process
    -*) usage ;;
    *) out=$1 ;;
  esac
  shift
done
[[ $device == cuda || $device == cpu ]] || usage

# --- the stages: each is a function that runs in a process of its own --------------------------------

# Name and seconds of each; the order is that of the worth of what is learnt.
STAGES=(environment:15 build:95 smoke:75 tests:120 sanitizers:45 bench_float16:65 bench_float32:50
  streaming:35 tune:30)

in_dry_run() { [[ $dry == yes ]]; }

stage_environment() {
  date -u
  [[ $device == cpu ]] || nvidia-smi
  nvcc --version
  "$python" --version
  "$python" -m pip list 2>/dev/null
  "$python" - "$device" <<'PYTHON'
import sys, torch
print("torch", torch.__version__, "CUDA", torch.version.cuda, "device", sys.argv[1])
if sys.argv[1] == "cuda":
    print(torch.cuda.get_device_properties(0))  # also the check that torch finds one
PYTHON
}

build() { "$python" setup.py build_ext --inplace && "$python" - <<'PYTHON'
import tdnet_ops
for key, value in tdnet_ops.build_info().items():
    print(key, value)
PYTHON
}

stage_build() {
  export MAX_JOBS=${MAX_JOBS:-$(nproc)}
  if [[ $device == cpu ]]; then
    TDNET_CUDA=0 build
    return
  fi
  TORCH_CUDA_ARCH_LIST=$("$python" -c \
    'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return 1
  export TORCH_CUDA_ARCH_LIST
  TDNET_CUDA=1 build && return
  echo "The CUDA kernels do not build: what follows shows the Triton kernels alone."
  TDNET_CUDA=0 build
  return 1
}

stage_smoke() { "$python" benchmarks/gpu_smoke.py --device "$device"; }

# First what only a GPU can get wrong, then the samples. Work is shared test by test, not file by
# file; what never touches the device is left out.
stage_tests() {
  local options=(--device "$device" -p no:cacheprovider -q) workers status=0
  workers=$(nproc)
  ((workers > 8)) && workers=8
  local samples=(tests/tdnet_ops/test_{correctness,gradients,semantics,checks,registration}.py
    tests/tdnet/test_{models,streaming}.py)
  if in_dry_run; then
    "$python" -m pytest "${options[@]}" tests/device/test_checks_can_fail.py -k 'seen and not leak'
    return
  fi
  export TDNET_REQUIRE_GPU=1
  options+=(-n "$workers" --dist=worksteal)
  "$python" -m pytest "${options[@]}" --junitxml="$work/logs/tests_device.xml" tests/device ||
    status=1
  "$python" -m pytest "${options[@]}" --junitxml="$work/logs/tests_samples.xml" "${samples[@]}" ||
    status=1
  return $status
}

stage_sanitizers() {
  local tool status=0 program=("$python" benchmarks/gpu_smoke.py --device "$device")
  if [[ $device == cpu ]]; then
    "${program[@]}" --backend cpu --steps tiny
    return
  fi
  for tool in memcheck racecheck; do
    # Only our kernels are instrumented; torch's cache would hide where one tensor ends. API errors
    # are not counted: libraries ask for entry points that a driver lacks, ours are checked anyway.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --kernel-name kns=tdnet \
      --report-api-errors no --error-exitcode 9 \
      "${program[@]}" --backend cuda --steps tiny several_blocks || status=1
  done
  return $status
}

# The budget, in seconds, leaves time for the imports.
bench() {
  local options=(--device "$device" --dtype "$1" --seconds 1 --budget "$2")
  in_dry_run && options=(--device cpu --dtype "$1" --seconds 0 --threads 1 --case tiny
    --op spatial_pool --peers reference)
  "$python" -m tdnet_ops.bench "${options[@]}" --csv "$out/bench_$1.csv"
}

stage_bench_float16() { bench float16 55; }
stage_bench_float32() { bench float32 40; }

stage_streaming() {
  local options=(--device "$device")
  in_dry_run && options=(--device cpu --size 33x65 --frames 1 --dtype float32 --model td4-psp18)
  "$python" benchmarks/streaming_latency.py "${options[@]}" --csv "$out/streaming.csv"
}

stage_tune() {
  local said
  if [[ $device == cpu ]]; then
    # There is nothing to time: the command has to say so.
    said=$("$python" -m tdnet_ops.triton.tuning.tune --output "$work/table.json" 2>&1)
    echo "$said"
    [[ $said == *"nothing can be timed"* ]]
    return
  fi
  "$python" -m tdnet_ops.triton.tuning.tune --output "$out/triton_defaults.json"
}

if [[ -n $stage ]]; then
  cd "$work/source" && "stage_$stage"
  exit
fi

# --- running them ------------------------------------------------------------------------------------

if ! { mkdir -p "$out" && : >"$out/summary.txt"; } 2>/dev/null; then
  echo "gpu_oneshot.sh: cannot write to the folder $out" >&2
  exit 2
fi
out=$(readlink -f "$out")
work=$(mktemp -d "${TMPDIR:-/tmp}/tdnet-gpu.XXXXXX")
export work
seconds=530
in_dry_run && seconds=3600
seconds=${TDNET_SECONDS:-$seconds}
failed=0 running=

# What is there so far, in the few files of the output folder.
save() {
  printf '%-15s %-22s %8s  %s\n' stage result seconds 'last line' | cat - "$work/lines" \
    >"$out/summary.txt.part" 2>/dev/null
  "$python" "$repository/benchmarks/gpu_table.py" "$out" >>"$out/summary.txt.part" 2>&1
  mv "$out/summary.txt.part" "$out/summary.txt"
  tar -C "$work" -czf "$out/logs.tar.gz.part" logs && mv "$out/logs.tar.gz.part" "$out/logs.tar.gz"
}

finish() {
  trap - TERM INT HUP EXIT
  [[ -z $running ]] || { kill -TERM -- "-$running" || kill "$running"; } 2>/dev/null
  [[ ${1:-} == stopped ]] && printf '%-15s %s\n' "$name" 'stopped from outside' >>"$work/lines"
  save
  rm -rf "$work"
  cat "$out/summary.txt"
  echo "results: $out"
  if [[ ${1:-} == stopped ]]; then exit 143; fi
  exit $((failed > 0))
}

# Runs the stage $1 for at most $2 seconds, its output in a log.
run_stage() {
  local log=$work/logs/$1.log start=$SECONDS status result options=(--device "$device" --stage "$1")
  in_dry_run && options+=(--dry-run)
  # SIGINT, so that pytest and the benchmarks say what they have so far. Bash lets what runs in the
  # background ignore it.
  env --default-signal=INT timeout --signal=INT --kill-after=10 "$2" \
    "$BASH" "$self" "${options[@]}" "$out" >"$log" 2>&1 &
  running=$!
  wait "$running"
  status=$?
  running= name=-
  case $status in
    0) result=passed ;;
    124 | 137) result="stopped after $2 s" ;;
    *) result="FAILED (exit $status)" ;;
  esac
  ((status == 0)) || failed=$((failed + 1))
  printf '%-15s %-22s %8d  %s\n' "$1" "$result" $((SECONDS - start)) \
    "$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-120)" >>"$work/lines"
  tail -n 1 "$work/lines"
}

mkdir -p "$work/logs" "$work/source" "$work/site"
: >"$work/lines"
name=preparation
trap 'finish stopped' TERM INT HUP

# A copy: the checkout stays clean, and its own builds cannot be picked up.
tar -C "$repository" --exclude=./.git --exclude=./build --exclude=./dist --exclude='*.so' \
  --exclude='*.egg-info' --exclude=__pycache__ --exclude=./.venv --exclude=./gpu_oneshot -cf - . |
  tar -C "$work/source" -xf -
if [[ -n ${TDNET_WHEELS:-} ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
    --target "$work/site" "$TDNET_WHEELS"/*.whl >"$work/logs/wheels.log" 2>&1 ||
    echo "TDNET_WHEELS: not all could be installed, see logs.tar.gz"
fi
export PYTHONPATH=$work/source:$work/site${PYTHONPATH:+:$PYTHONPATH}
export PATH=$PATH:$work/site/bin  # cmake and ninja, where the machine lacks them
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
unset TDNET_TEST_INSTALLED  # the copy is what is to be tested
in_dry_run && export OMP_NUM_THREADS=1

left_for_later=0
for entry in "${STAGES[@]}"; do left_for_later=$((left_for_later + ${entry#*:})); done
for entry in "${STAGES[@]}"; do
  name=${entry%:*}
  left_for_later=$((left_for_later - ${entry#*:}))
  limit=$((seconds - SECONDS - left_for_later))
  # Even late, a stage gets what it was promised, while there is any time at all.
  ((limit >= ${entry#*:})) || limit=${entry#*:}
  ((limit <= seconds - SECONDS)) || limit=$((seconds - SECONDS))
  if ((limit <= 0)); then
    printf '%-15s %s\n' "$name" 'not run: no time left' >>"$work/lines"
    failed=$((failed + 1))
    continue
  fi
  run_stage "$name" "$limit"
  save
done
finish
