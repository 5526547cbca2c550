#!/usr/bin/env bash
# Everything that needs a GPU, in pieces of at most ten minutes, with all output in one folder:
#
#   benchmarks/gpu_visit.sh OUT            the GPU tests, coverage, then all benchmarks
#   benchmarks/gpu_visit.sh OUT tests      one piece: tests, alone (those that measure), coverage, compare, maxima, repeats
#                                          (NAME=… an architecture), converters, engines, onnx_start, serving, moves, speed,
#                                          or rest; or versions, with BEFORE=… another checkout
#
# PYTHON=…  the interpreter (default: python3); SECONDS_EACH=…  the limit of a piece (default: 570)
# JOBS=…    tests, and architectures, at once (default: 8); CUDA_VISIBLE_DEVICES and taskset let two pieces run side by side,
#           but beside alone and the benchmarks only what leaves their cores and their GPU free
# The models that the benchmarks share stay in WORK (default: a folder under TMPDIR), so that the pieces build them once.
set -u
out=$(mkdir -p "${1:?usage: gpu_visit.sh OUT [PIECE]}" && cd "$1" && pwd)
pieces=${2:-tests alone coverage compare converters engines onnx_start maxima serving moves speed rest}
jobs=${JOBS:-8}
python=${PYTHON:-python3}
limit=${SECONDS_EACH:-570}
work=${WORK:-${TMPDIR:-/tmp}/mlflow-trt-gpu-visit}
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MLFLOW_DISABLE_TELEMETRY=true
status=0
COMPARED="torchvision/resnet50 torchvision/mobilenet_v3_small torchvision/efficientnet_b0 torchvision/vit_b_16
 torchvision/convnext_tiny timm/mobilenetv4_conv_small timm/fastvit_t8 transformers/bert transformers/gpt2
 transformers/vit transformers/t5 torch/lstm"

bench() {
  "$python" -m benchmarks --out "$out" --work "$work" --add --budget "$((limit - 15))" "$@" 2>&1 | tee "$out/benchmarks-$piece.txt"
  return "${PIPESTATUS[0]}"
}

piece_of() {
  local module=$1
  shift
  timeout "$limit" "$python" -m "$module" "$@" 2>&1 | tee "$out/${output:-${module#benchmarks.}}.txt"
  return "${PIPESTATUS[0]}"
}

check() {
  local name=$1
  shift
  timeout "$limit" "$python" -m pytest "$@" -q -ra --junitxml="$out/$name.xml" 2>&1 | tee "$out/$name.txt"
  return "${PIPESTATUS[0]}"
}

for piece in $pieces; do
  case $piece in
    tests) check gpu-tests tests -m "gpu and not alone" -n "$jobs" --dist loadgroup --timeout 200 || status=1 ;;
    alone) check gpu-tests-alone tests -m "gpu and alone" --timeout 120 || status=1 ;;
    coverage) piece_of benchmarks.coverage --jobs "$jobs" --timeout "$((limit - 60))" --budget "$((limit - 30))" --out "$out" || status=1 ;;
    compare) piece_of benchmarks.coverage --compare --jobs "$jobs" --timeout "$((limit - 60))" --budget "$((limit - 30))" --out "$out" $COMPARED || status=1 ;;
    versions) piece_of benchmarks.versions "${BEFORE:?another checkout}" --starts 5 --rounds 3 || status=1 ;;
    repeats) piece_of benchmarks.repeats "${NAME:-timm/convnextv2_atto}" --seconds "$(((limit - 30) / 2))" || status=1 ;;
    converters) piece_of benchmarks.converters --rounds 1 --budget "$((limit - 30))" --out "$out" || status=1 ;;
    engines) output=engines piece_of benchmarks.converters --engines --jobs "$jobs" --budget "$((limit - 30))" --out "$out" || status=1 ;;
    onnx_start) piece_of benchmarks.onnx_start --starts 3 --out "$out" || status=1 ;;
    maxima) piece_of benchmarks.maxima || status=1 ;;
    serving) bench serving_latency serving_concurrent || status=1 ;;
    moves) bench serving_moves || status=1 ;;
    speed) bench prepare resnet50_batch1 resnet50_batch8 tiny_mlp sizes_in_turn random_sizes threads first_answer || status=1 ;;
    rest) bench log_model peak_memory imports wrapper alternatives || status=1 ;;
    *) echo "unknown piece: $piece (tests, alone, coverage, compare, converters, engines, onnx_start, versions, maxima, repeats, serving, moves, speed, rest)" >&2; exit 2 ;;
  esac
done
exit $status
