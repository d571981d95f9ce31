#!/usr/bin/env bash
# Make the runs, tables and pictures of assets/RESULTS.md: bash tests/reproduce.sh [PART...]
# What is finished is skipped and what was stopped is resumed, so it can be stopped at any time.
# PART "tried", the other settings of RESULTS.md's last table, is made only when it is named.
# JOBS=2 runs at a time, one thread each; DATA=data; DEVICE=cpu; ITERS=10: a rehearsal, all of it.
set -euo pipefail
cd "$(dirname "$0")/.."
export JOBS=${JOBS:-2} DATA=${DATA:-data} DEVICE=${DEVICE:-cpu} ITERS=${ITERS:-}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
PARTS=" ${*:-quick gran draw labels wgan telugu faces cifar10} "
mkdir -p runs results
[ $# -gt 0 ] || trap 'echo "$SECONDS" >> results/calls' EXIT  # the whole list's time, a line a call
[ -d "$DATA/telugu" ] || PARTS=${PARTS/ telugu / }  # nobody publishes it

# part, run (runs/RUN-SEED), number of seeds, script and flags
runs() { cat <<'END'
quick    gran1-quick       3  gran.py --dataset mnist --steps 1 --epochs 3
quick    gran3-quick       3  gran.py --dataset mnist --steps 3 --epochs 3
quick    gran5-quick       3  gran.py --dataset mnist --steps 5 --epochs 3
quick    draw-quick        3  draw_gan.py --dataset mnist --epochs 4
quick    draw-gan-quick    3  draw_gan.py --dataset mnist --objective draw-gan --epochs 3
quick    dcrw-quick        3  dcrw.py --dataset mnist --epochs 4
quick    vae-quick         3  vae.py --dataset mnist
quick    dcgan-quick       3  dcgan.py --dataset mnist --conditional --epochs 4
quick    de_gan-quick      3  de_gan.py --dataset mnist --conditional --epochs 2
gran     gran3-per-step    1  gran.py --dataset mnist --steps 3 --epochs 3 --noise per-step
gran     dvae              1  vae.py --dataset mnist --objective dvae
gran     gran1-cifar10     3  gran.py --dataset cifar10 --steps 1 --width 16 --lr-g 2e-4 --lr-d 8e-4 --epochs 15
gran     gran3-cifar10     1  gran.py --dataset cifar10 --steps 3 --width 16 --lr-g 2e-4 --lr-d 8e-4 --epochs 15
draw     draw              1  draw_gan.py --dataset mnist --epochs 15
draw     info              3  vae.py --dataset mnist --objective info
draw     dcrw-none         1  dcrw.py --dataset mnist --epochs 4 --read none
labels   dcgan-labels      1  dcgan.py --dataset mnist --conditional --epochs 10
labels   gan-labels        1  dcgan.py --dataset mnist --conditional --arch dense --epochs 8
labels   vae-labels        3  vae.py --dataset mnist --conditional
labels   aae-labels        3  vae.py --dataset mnist --conditional --objective aae
wgan     wgan-labels       3  dcgan.py --dataset mnist --conditional --objective wgan --epochs 32
telugu   draw-telugu       1  draw_gan.py --dataset telugu --batch-size 25 --epochs 25
telugu   draw-gan-telugu   1  draw_gan.py --dataset telugu --batch-size 25 --objective draw-gan --epochs 18 --adversarial 2
telugu   vae-telugu        1  vae.py --dataset telugu --epochs 40
telugu   info-telugu       1  vae.py --dataset telugu --objective info --epochs 40
faces    de_gan-faces      1  de_gan.py --dataset faces --epochs 25
faces    dcgan-faces       1  dcgan.py --dataset faces --batch-size 64 --epochs 35
cifar10  dcgan-cifar10     1  dcgan.py --dataset cifar10 --conditional --width 16 --epochs 40
cifar10  de_gan-cifar10    1  de_gan.py --dataset cifar10 --conditional --epochs 11
cifar10  vae-cifar10       1  vae.py --dataset cifar10 --conditional --arch conv --epochs 4
tried    gran1-decay0      3  gran.py --dataset mnist --steps 1 --epochs 3 --decay 0
tried    gran5-decay0      3  gran.py --dataset mnist --steps 5 --epochs 3 --decay 0
tried    gran5-ema0        3  gran.py --dataset mnist --steps 5 --epochs 3 --ema 0
tried    gran5-rates       1  gran.py --dataset mnist --steps 5 --epochs 3 --lr-g 4e-4 --lr-d 8e-4
tried    gran1-cifar10-rates 3  gran.py --dataset cifar10 --steps 1 --width 16 --lr-g 1e-4 --lr-d 4e-5 --epochs 15
tried    dcgan-ema0        3  dcgan.py --dataset mnist --conditional --epochs 4 --ema 0
tried    dcgan-2e-4        3  dcgan.py --dataset mnist --conditional --epochs 4 --lr-g 2e-4 --lr-d 2e-4
tried    dcgan-16e-4       1  dcgan.py --dataset mnist --conditional --epochs 4 --lr-g 16e-4 --lr-d 16e-4
tried    dcgan-decay0      3  dcgan.py --dataset mnist --conditional --epochs 4 --decay 0
tried    de_gan-ema0       3  de_gan.py --dataset mnist --conditional --epochs 2 --ema 0
tried    de_gan-decay0     3  de_gan.py --dataset mnist --conditional --epochs 2 --decay 0
tried    wgan-5e-5         1  dcgan.py --dataset mnist --conditional --objective wgan --epochs 32 --lr-g 5e-5 --lr-d 5e-5
tried    dcrw-2e-3         3  dcrw.py --dataset mnist --epochs 4 --lr 2e-3
tried    draw-5            3  draw_gan.py --dataset mnist --epochs 5
tried    draw-lr2          3  draw_gan.py --dataset mnist --epochs 4 --lr-g 2e-3
tried    draw-read2        3  draw_gan.py --dataset mnist --epochs 4 --lr-g 2e-3 --read 2
tried    draw-gan-3        1  draw_gan.py --dataset mnist --objective draw-gan --epochs 3 --adversarial 3
tried    draw-gan-30       1  draw_gan.py --dataset mnist --objective draw-gan --epochs 3 --adversarial 30
tried    draw-gan-r3       1  draw_gan.py --dataset mnist --objective draw-gan --epochs 3 --r1 3
tried    draw-gan-rate     1  draw_gan.py --dataset mnist --objective draw-gan --epochs 3 --lr-d 1.2e-3
tried    draw-gan-half     1  draw_gan.py --dataset mnist --objective draw-gan --epochs 3 --warm-up 900
tried    aae-z20           3  vae.py --dataset mnist --conditional --objective aae --z-dim 20
tried    info-z20          3  vae.py --dataset mnist --objective info --z-dim 20
tried    info-z20-1000     1  vae.py --dataset mnist --objective info --z-dim 20 --mmd-weight 1000
tried    info-z12          1  vae.py --dataset mnist --objective info --z-dim 12
tried    info-z6           1  vae.py --dataset mnist --objective info --z-dim 6
tried    info-30           1  vae.py --dataset mnist --objective info --mmd-weight 30
tried    info-300          1  vae.py --dataset mnist --objective info --mmd-weight 300
END
}

# part, result (results/RESULT-SEED.json), number of seeds, command; SEED is each of them
measures() { cat <<'END'
quick    quick             3  eval runs/gran1-quick-SEED runs/gran3-quick-SEED runs/gran5-quick-SEED runs/draw-quick-SEED runs/draw-gan-quick-SEED runs/dcrw-quick-SEED runs/vae-quick-SEED runs/dcgan-quick-SEED runs/de_gan-quick-SEED
quick    battles           1  gam runs/gran1-quick-0 runs/gran1-quick-1 runs/gran1-quick-2 runs/gran3-quick-0 runs/gran3-quick-1 runs/gran3-quick-2 runs/gran5-quick-0 runs/gran5-quick-1 runs/gran5-quick-2
gran     noise             1  eval runs/gran3-per-step-SEED
gran     table3            1  gam runs/gran1-quick-0 runs/gran3-quick-0 runs/dvae-0 runs/draw-quick-0
gran     table4            1  gam runs/gran5-quick-0 runs/gran5-quick-0@7 runs/gran5-quick-0@9
gran     gran-cifar10      3  eval runs/gran1-cifar10-SEED
gran     gran3-cifar10     1  eval runs/gran3-cifar10-SEED
gran     battle-cifar10    1  gam runs/gran1-cifar10-0 runs/gran3-cifar10-0
draw     draw              1  eval runs/draw-SEED
draw     info              3  eval runs/info-SEED
labels   labels            3  eval runs/aae-labels-SEED runs/vae-labels-SEED
labels   labels-once       1  eval runs/dcgan-labels-SEED runs/gan-labels-SEED
labels   dim-mnist         1  dim --dataset mnist
wgan     wgan              3  eval runs/wgan-labels-SEED
telugu   telugu            1  eval runs/vae-telugu-SEED runs/info-telugu-SEED runs/draw-telugu-SEED runs/draw-gan-telugu-SEED --features pixels --n 1500
cifar10  cifar10           1  eval runs/dcgan-cifar10-SEED runs/de_gan-cifar10-SEED runs/vae-cifar10-SEED
tried    draw-5            3  eval runs/draw-5-SEED
tried    tried             3  eval runs/gran5-decay0-SEED runs/gran5-ema0-SEED runs/dcgan-ema0-SEED runs/draw-lr2-SEED runs/draw-read2-SEED
tried    tried-more        3  eval runs/gran1-decay0-SEED runs/de_gan-ema0-SEED runs/info-z20-SEED runs/dcrw-2e-3-SEED runs/dcgan-2e-4-SEED runs/dcgan-decay0-SEED runs/de_gan-decay0-SEED
tried    tried-aae         3  eval runs/aae-z20-SEED
tried    tried-once        1  eval runs/gran5-rates-SEED runs/dcgan-16e-4-SEED runs/wgan-5e-5-SEED runs/draw-gan-3-SEED runs/draw-gan-30-SEED runs/draw-gan-r3-SEED runs/draw-gan-rate-SEED runs/draw-gan-half-SEED runs/info-z20-1000-SEED runs/info-z12-SEED runs/info-z6-SEED runs/info-30-SEED runs/info-300-SEED
tried    gran-cifar10-rates 3  eval runs/gran1-cifar10-rates-SEED
tried    battles-decay0    1  gam runs/gran1-decay0-0 runs/gran1-decay0-1 runs/gran1-decay0-2 runs/gran5-decay0-0 runs/gran5-decay0-1 runs/gran5-decay0-2
END
}

# part, run, exploration and its flags; runs/RUN/explore holds what it finds
explorations() { cat <<'END'
labels   dcgan-labels-0    nearest
faces    dcgan-faces-0     walk
faces    dcgan-faces-0     arithmetic
faces    dcgan-faces-0     filters
faces    dcgan-faces-0     forget
faces    dcgan-faces-0     features --on cifar10
END
}

# part, run, flags of de_gan.py: DE-GAN's Figure 6, accuracy over the updates
curves() { cat <<'END'
labels   curve-de_gan   --dataset mnist --conditional --vae-iters 2814 --epochs 2 --ema 0
labels   curve-plain    --dataset mnist --conditional --noise plain --epochs 2 --ema 0
END
}

train() {  # RUN SCRIPT FLAGS...
    local run=runs/$1 argv=("${@:2}" --seed "${1##*-}" --out "runs/$1")
    [ ! -e "$run/done" ] || return 0
    [ ! -e "$run/checkpoint.pt" ] || argv=("$2" --resume "$run")
    echo "== $(date +%T) python ${argv[*]}"
    python "${argv[@]}" --data-dir "$DATA" --device "$DEVICE" ${ITERS:+--iters "$ITERS"} > "results/$1.log" 2>&1 \
        || { echo "== $1 failed:"; tail -n 3 "results/$1.log"; return 1; }
    touch "$run/done"
}

measure() {  # RESULT COMMAND...
    local more=()
    [ ! -e "results/$1.json" ] || return 0
    [ "$2" = dim ] || [ -z "$ITERS" ] || more=(--n 200)
    echo "== $(date +%T) python metrics.py ${*:2}"
    python metrics.py "${@:2}" "${more[@]}" --data-dir "$DATA" --device "$DEVICE" --json "results/$1.json" > "results/$1.txt" 2>&1 \
        || { echo "== $1 failed:"; tail -n 3 "results/$1.txt"; return 1; }
}
exploration() {  # RUN NAME FLAGS...
    [ ! -e "runs/$1/explore/$2.png" ] && [ ! -e "runs/$1/explore/$2.txt" ] || return 0
    echo "== $(date +%T) python dcgan.py --resume runs/$1 --explore ${*:2}"
    python dcgan.py --resume "runs/$1" --explore "${@:2}" --data-dir "$DATA" --device "$DEVICE" \
        || [ -n "$ITERS" ]  # a rehearsal's samples show nothing yet
}
curve() {  # RUN FLAGS...
    [ ! -e "runs/$1/done" ] || return 0
    echo "== $(date +%T) python tests/figures.py curve runs/$1 ${ITERS:-200} ${*:2}"
    python tests/figures.py curve "runs/$1" "${ITERS:-200}" "${@:2}" --data-dir "$DATA" --device "$DEVICE" \
        > "results/$1.log" 2>&1 || { echo "== $1 failed:"; tail -n 3 "results/$1.log"; return 1; }
    touch "runs/$1/done"
}
export -f train measure exploration curve

each() {  # the lines of a list that belong to PARTS, once for each seed
    local part name seeds rest seed
    while read -r part name seeds rest; do
        [[ $PARTS = *" $part "* ]] || continue
        for ((seed = 0; seed < seeds; seed++)); do echo "$name-$seed ${rest//SEED/$seed}"; done
    done
}

runs | each | xargs -P "$JOBS" -L 1 bash -c 'train "$@"' _
measures | each | xargs -P "$JOBS" -L 1 bash -c 'measure "$@"' _
for list in explorations curves; do
    $list | while read -r part rest; do
        [[ $PARTS != *" $part "* ]] || echo "$rest"
    done | xargs -P "$JOBS" -L 1 bash -c "${list%s} \"\$@\"" _
done
for run in runs/*/; do
    [ -e "$run/nearest.png" ] || echo "$run"
done | xargs -r -P "$JOBS" -n 1 python tests/figures.py
[ $# -gt 0 ] || { trap - EXIT; echo "$SECONDS" >> results/calls; }
python tests/figures.py tables
