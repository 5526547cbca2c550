#!/usr/bin/env bash
# Everything that needs a GPU, in pieces of at most ten minutes, with all output in one folder:
#
#   benchmarks/gpu_visit.sh OUT            the GPU tests, the examples, then all benchmarks
#   benchmarks/gpu_visit.sh OUT tests      one piece: tests, examples, serving, moves, speed, or rest
#
# PYTHON=…  the interpreter (default: python3); SECONDS_EACH=…  the limit of a piece (default: 570)
# The models that the benchmarks share stay in WORK (default: a folder under TMPDIR), so that the pieces build them once.
set -u
out=$(mkdir -p "${1:?usage: gpu_visit.sh OUT [tests|examples|serving|moves|speed|rest]}" && cd "$1" && pwd)
pieces=${2:-tests examples serving moves speed rest}
python=${PYTHON:-python3}
limit=${SECONDS_EACH:-570}
work=${WORK:-${TMPDIR:-/tmp}/mlflow-trt-gpu-visit}
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MLFLOW_DISABLE_TELEMETRY=true
status=0

bench() {
  "$python" -m benchmarks --out "$out" --work "$work" --add --budget "$((limit - 15))" "$@" 2>&1 | tee "$out/benchmarks-$piece.txt"
  return "${PIPESTATUS[0]}"
}

check() {
  local name=$1
  shift
  timeout "$limit" "$python" -m pytest "$@" -v -ra --junitxml="$out/$name.xml" 2>&1 | tee "$out/$name.txt"
  return "${PIPESTATUS[0]}"
}

for piece in $pieces; do
  case $piece in
    tests) check gpu-tests tests -m gpu --ignore=tests/test_examples.py || status=1 ;;
    examples) check gpu-examples tests/test_examples.py || status=1 ;;
    serving) bench serving_latency serving_concurrent || status=1 ;;
    moves) bench serving_moves || status=1 ;;
    speed) bench prepare resnet50_batch1 resnet50_batch8 tiny_mlp sizes_in_turn random_sizes threads first_answer || status=1 ;;
    rest) bench log_model peak_memory imports wrapper alternatives || status=1 ;;
    *) echo "unknown piece: $piece (tests, examples, serving, moves, speed, rest)" >&2; exit 2 ;;
  esac
done
exit $status
