#!/usr/bin/env bash
# What only a card can show, in two calls of under seven minutes: bash tests/gpu_day.sh check|train
# Needs Python 3.12, torch 2.11 or newer and pytest, no network. MNIST's .gz files lie in $MNIST
# (default data/MNIST/raw); CIFAR10, if set, is a folder of CIFAR-10's class folders, train and test.
# Everything is written to $OUT (default gpu_day). DEVICE=cpu SHARE=0.1 LIMIT=1 rehearses a tenth of
# it without a card; LIMIT multiplies the time limits.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu_day} DEVICE=${DEVICE:-cuda} SHARE=${SHARE:-1} LIMIT=${LIMIT:-1} MNIST=${MNIST:-data/MNIST/raw}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
work=$(mktemp -d)
mkdir -p "$work/data/MNIST/raw" && cp "$MNIST"/* "$work/data/MNIST/raw/" && gunzip -kqf "$work"/data/MNIST/raw/*.gz 2> /dev/null
cp -r "$MNIST"/../../classifier-mnist-* "$work/data" 2> /dev/null  # where it has been trained
within() { timeout "$(($1 * LIMIT))" "${@:2}"; }
part() { python -c "print(max(1, round($1 * $SHARE)))"; }

check() {
    { date; git rev-parse --short HEAD; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
      python -c 'import sys, torch; print(sys.version.split()[0], torch.__version__, torch.version.cuda)'; } > "$OUT/machine.txt" 2>&1
    within 180 python -m pytest -q -s -p no:cacheprovider tests/test_cuda.py > "$OUT/tests.txt" 2>&1
    within 220 python tests/bench_train.py --dataset mnist --data-dir "$work/data" --device "$DEVICE" \
        --updates "$(part 200)" --rounds 1 --json "$OUT/speed.json" > "$OUT/speed.txt" 2>&1
    tail -n 3 "$OUT/tests.txt" "$OUT/speed.txt"
}

train() {  # three processes at once
    run() { within 150 python "${@:2}" --dataset mnist --data-dir "$work/data" --device "$DEVICE" --out "$work/runs/$1" > "$work/$1.log" 2>&1; }
    python -c "import metrics; metrics.classifier_of('mnist', '$work/data', device='$DEVICE')" 2> "$OUT/classifier.txt" &
    { run gran1 gran.py --steps 1 --iters "$(part 9000)"; run gran5 gran.py --steps 5 --iters "$(part 9000)"; } &
    { run draw draw_gan.py --steps 64 --epochs 15 --iters "$(part 9000)"; run gran3 gran.py --steps 3 --iters "$(part 9000)"; } &
    { run dcgan dcgan.py --conditional --epochs 19 --iters "$(part 9000)"; run draw-gan draw_gan.py --objective draw-gan --epochs 10 --warm-up "$(part 4000)" --iters "$(part 6000)"; } &
    wait
    [ ! -d "${CIFAR10:-}" ] || { ln -s "$CIFAR10" "$work/data/cifar10-jpeg"
        within 60 python dcgan.py --conditional --dataset cifar10 --data-dir "$work/data" --device "$DEVICE" \
            --iters "$(part 9000)" --out "$work/runs/cifar10" > "$work/cifar10.log" 2>&1; }
    for log in "$work"/*.log; do echo "== $log"; tail -n 3 "$log"; done > "$OUT/logs.txt"
    within 60 python metrics.py eval "$work"/runs/[dg]* --dataset mnist --data-dir "$work/data" --device "$DEVICE" \
        --n "$(part 10000)" --json "$OUT/eval.json" > "$OUT/eval.txt" 2>&1
    within 30 python metrics.py gam "$work"/runs/gran{1,3,5} --dataset mnist --data-dir "$work/data" --device "$DEVICE" \
        --n "$(part 10000)" > "$OUT/gam.txt" 2>&1
    (cd "$work/runs" && tar -czf "$OUT/pictures.tar.gz" ./*/samples ./*/*.gif ./*/*.png)
    cat "$OUT/eval.txt" "$OUT/gam.txt"
}

"${1:-check}"
rm -rf "$work"
