#!/usr/bin/env bash
# All that only a GPU shows, in parts of less than 9 minutes each.
#
#   bash benchmarks/gpu.sh carry        # here: what a bare machine lacks, into .gpu/
#   bash benchmarks/gpu.sh 1 5 3        # there: these parts, one after the other
#   bash benchmarks/gpu.sh all          # there: all of them
#   bash benchmarks/gpu.sh --dry-run    # every part once, small, on a CPU
#   bash benchmarks/gpu.sh table DIR... # the parts of several calls in one table
#
#   1 tests     the tests that are marked gpu                                         2 minutes
#   2 training  a step at batch 16 in bf16, in three ways beside torchvision;
#               where its time goes, host syncs, launches, memory; then fp16          8 minutes
#   3 inference batches of 1 and 8 beside torchvision                                 4 minutes
#   4 loader    300 steps of `train.py` on photos; what the loader alone gives        6 minutes
#   5 operators NMS and RoIAlign alone beside torchvision's                           2 minutes
#   6 accuracy  the shapes and the balloon set, with AP                               4 minutes
#   7 batches   as 2 at batch 8 and 32                                                8 minutes
# Minutes are guesses. LIMIT is the most seconds of a part, 520 unless it is set. Six parts and what is made
# of them are 8 files.
#
# A part writes ${OUT:-runs/gpu}/part_N.jsonl, a line for each measurement as soon as it is there, so
# that neither an error nor the limit loses what came before. gpu.md and gpu.json hold all parts.
#
# A machine without a way out has Python, torch 2.11, torchvision, lightning, torchmetrics, rich,
# typer, filelock, matplotlib, tensorboard and pytest. It lacks the wheels named below and the data:
# COCO's photos (train, and 30 of val for inference), the balloon set, and the weights it starts from
# (shared/data here, or MRCNN_SHARED); together they must stay within 64 MiB with the tree. Which
# commit it is goes along, for there is no history there.
set -uo pipefail
cd "$(dirname "$0")/.."

WHEELS=("hydra-core<1.4" "omegaconf<2.4" pycocotools "hotcoco<1.4" msgspec shapely "optuna<6" colorlog)
# Published as source alone: a wheel is made of it here.
SOURCES=(antlr4-python3-runtime==4.9.3)
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64
  manylinux2014_x86_64 manylinux_2_12_x86_64 manylinux2010_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64)
MOST_KIB=$((64 * 1024))
CARRIED=.gpu

carry() {
  local python=${PYTHON:-python3} shared=${MRCNN_SHARED:-../shared} to=$CARRIED/data
  rm -rf "$CARRIED"
  mkdir -p "$CARRIED/wheels" "$to/coco_tiny/val2017"
  "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${PLATFORMS[@]/#/--platform=}" -d "$CARRIED/wheels" "${WHEELS[@]}" || return
  "$python" -m pip wheel -q --no-deps -w "$CARRIED/wheels" "${SOURCES[@]}" || return
  cp -r "$shared/data/balloon" "$shared/data/weights" "$to/" || return
  cp -r "$shared/data/coco_tiny/annotations" "$shared/data/coco_tiny/train2017" "$to/coco_tiny/" || return
  # Eight of the first 30 are of the size that inference.py takes.
  find "$shared/data/coco_tiny/val2017" -name '*.jpg' | sort | head -n 30 \
    | xargs -I{} cp {} "$to/coco_tiny/val2017/" || return
  git describe --always --dirty >"$CARRIED/commit"
  local kib
  kib=$(du -sk --apparent-size --exclude=.git --exclude=.venv --exclude=runs --exclude='.*_cache' . | cut -f1)
  echo "$CARRIED holds $(du -sk --apparent-size $CARRIED | cut -f1) KiB; with the tree $kib of $MOST_KIB KiB"
  ((kib <= MOST_KIB)) || { echo "that is too much: carry less" >&2; return 1; }
}

# What was carried is put in place, where this Python lacks it.
provide() {
  [[ -d $CARRIED ]] || return 0
  export MRCNN_SHARED=${MRCNN_SHARED:-$PWD/$CARRIED}
  BENCHMARK_COMMIT=$(git describe --always --dirty 2>/dev/null || cat "$CARRIED/commit")
  export BENCHMARK_COMMIT
  "$PYTHON" -c "import hydra, hotcoco, msgspec, optuna, shapely" 2>/dev/null && return
  local site
  site=$(mktemp -d)
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$CARRIED"/wheels/*.whl || return
  export PYTHONPATH=$site:$PYTHONPATH
}

# A script of benchmarks/, whose lines go to the part's file; an end before its time is one of them.
measure() {
  local part=$1 script=$2 left
  shift 2
  left=$((ENDS - SECONDS))
  echo "== part $part: $script $*"
  timeout --kill-after=10 "$((left > 1 ? left : 1))" \
    "$PYTHON" "benchmarks/$script" "$@" "${DRY[@]}" --out "$OUT/part_$part.jsonl"
  local status=$?
  ((status == 0)) && return
  "$PYTHON" - "$OUT/part_$part.jsonl" "$script $*" "$status" <<'PYTHON'
import pathlib, sys
sys.path.insert(0, "benchmarks")
from turns import recorded
_, out, what, status = sys.argv
recorded({"benchmark": what, "error": f"exit status {status} (124 and 137: the limit)"}, pathlib.Path(out))
PYTHON
}

part() {
  ENDS=$((SECONDS + ${LIMIT:-520}))
  local all=(--way plain --way parts --way step)
  case $1 in
    1) measure 1 gpu_tests.py ;;
    2)
      measure 2 training_step.py --batch 16 --precision bf16 "${all[@]}" --profile
      measure 2 training_step.py --batch 16 --precision fp16 --way plain
      ;;
    3) measure 3 inference.py --batch 1 --batch 8 ;;
    4)
      measure 4 feeding.py --workers 14
      measure 4 runs.py speed
      ;;
    5) measure 5 nms_and_roi_align.py ;;
    6) measure 6 runs.py accuracy ;;
    7)
      measure 7 training_step.py --batch 8 --batch 32 --precision bf16 --precision fp16 --way plain
      measure 7 training_step.py --batch 8 --batch 32 --precision bf16 --way parts --way step
      measure 7 training_step.py --batch 16 --precision fp16 --way parts --way step
      ;;
  esac
}

main() {
  local parts=() each
  DRY=()
  PYTHON=${PYTHON:-python3}
  OUT=${OUT:-runs/gpu}
  export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  for each in "$@"; do
    case $each in
      carry | table) ;;
      all) parts+=(1 2 3 4 5 6 7) ;;
      --dry-run) DRY=(--dry-run) ;;
      [1-7]) parts+=("$each") ;;
      *) [[ ${1-} == table ]] || { echo "$each is no part: see the head of benchmarks/gpu.sh" >&2; return 2; } ;;
    esac
  done
  [[ ${1-} == carry ]] && { carry; return; }
  [[ ${1-} == table ]] && { shift; "$PYTHON" benchmarks/gpu_table.py "$@"; return; }
  ((${#DRY[@]} && ${#parts[@]} == 0)) && parts=(1 2 3 4 5 6) # 7 is 2 with other numbers
  ((${#parts[@]})) || { echo "say which parts: see the head of benchmarks/gpu.sh" >&2; return 2; }
  ((${#DRY[@]})) || "$PYTHON" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null \
    || { echo "no GPU here: bash benchmarks/gpu.sh --dry-run goes without" >&2; return 2; }
  provide || return
  mkdir -p "$OUT"
  for each in "${parts[@]}"; do
    rm -f "$OUT/part_$each.jsonl"
    part "$each"
  done
  "$PYTHON" benchmarks/gpu_table.py "$OUT"
}

main "$@"
