#!/usr/bin/env bash
# Makes again what README.md shows: trains every model named there and prints every table, into results/.
#
#   bash tests/reproduce.sh                 all of it, in the order of the README
#   bash tests/reproduce.sh gran dcrw       only these parts, of those on the last line
#   DATA=~/data DEVICE=cuda bash tests/reproduce.sh
#   ITERS=10 bash tests/reproduce.sh        a rehearsal of it all: 10 updates a run, 200 images a measure. In a copy of its own!
#
# It may be stopped at any time and started again: a run that stands is skipped, one that was stopped goes on. DATA holds
# MNIST/raw, cifar10/ or cifar10-jpeg/ and telugu/, as data.py describes them (MNIST is downloaded where it is missing).
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-data}
DEVICE=${DEVICE:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
mkdir -p results runs
quiet="--log-every 100 --sample-every 1000"
mnist="--dataset mnist"

train() {  # train NAME SCRIPT FLAGS...: runs/NAME, unless it is done
    local name=$1 script=$2
    shift 2
    [ -e "runs/$name/done" ] && return
    if [ "${ITERS:-}" ]; then
        set -- "$@" --iters "$ITERS"
        [ "$script" != de_gan.py ] || set -- "$@" --vae-iters "$ITERS"
    fi
    echo "== $name: python $script $*"
    if [ -e "runs/$name/checkpoint.pt" ]; then
        python "$script" --resume "runs/$name" --device "$DEVICE"
    else
        python "$script" $quiet "$@" --data-dir "$DATA" --device "$DEVICE" --out "runs/$name"
    fi
    touch "runs/$name/done"
}

measure() {  # measure NAME COMMAND FLAGS...: results/NAME.txt and .json, unless they are there
    local name=$1
    shift
    [ -e "results/$name.json" ] && return
    [ -z "${ITERS:-}" ] || [ "$1" = dim ] || set -- "$@" --n 200
    echo "== $name: python metrics.py $*"
    python metrics.py "$@" --data-dir "$DATA" --device "$DEVICE" --json "results/$name.json" | tee "results/$name.txt"
}

explore() {  # explore RUN LOOK: runs/RUN/explore/LOOK.png and .txt, unless one is there
    compgen -G "runs/$1/explore/$2.*" > /dev/null && return
    echo "== $1: $2"
    python dcgan.py --resume "runs/$1" --explore "$2" --data-dir "$DATA" --device "$DEVICE" || [ "${ITERS:-}" ]  # too soon to explore
}

first() {  # the README's command, on the embedded digits
    train first gran.py --steps 5
}

gran() {  # GRAN: Tables 2 to 4 and the figures of samples, steps and neighbours, in each run's folder
    for T in 1 3 5; do train "gran$T-mnist" gran.py $mnist --steps $T --epochs 6; done
    train dvae-mnist vae.py $mnist --objective dvae
    train draw-mnist draw_gan.py $mnist --epochs 15
    measure gran-table2 gam runs/gran{1,3,5}-mnist
    measure gran-table3 gam runs/gran{1,3}-mnist runs/dvae-mnist runs/draw-mnist
    measure gran-table4 gam runs/gran5-mnist{,@7,@9}
    measure gran eval runs/gran{1,3,5}-mnist
    train gran3-once gran.py $mnist --steps 3 --epochs 2  # one noise for all steps against a noise for each (Figures 11, 29)
    train gran3-per-step gran.py $mnist --steps 3 --epochs 2 --noise per-step
    measure gran-noise eval runs/gran3-{once,per-step}
    python - <<'EOF' | tee results/gran-noise-steps.txt
import gran, metrics, torch
for name in ("once", "per-step"):
    canvases = gran.canvases(metrics.load_run(f"runs/gran3-{name}").nets, 1000, generator=torch.Generator().manual_seed(0))
    print(name, "mean change of a pixel from step to step:", canvases.diff(dim=0).abs().flatten(1).mean(1).tolist())
EOF
}

draw() {  # DRAW and DRAW-GAN: Table I
    train vae-mnist vae.py $mnist
    train info-mnist vae.py $mnist --objective info
    train draw-mnist draw_gan.py $mnist --epochs 15
    train draw-gan-mnist draw_gan.py $mnist --objective draw-gan --epochs 5
    measure draw-table1 eval runs/{vae,info,draw,draw-gan}-mnist --paper-units
    for seed in 1 2; do
        train vae-seed$seed vae.py $mnist --seed $seed
        train info-seed$seed vae.py $mnist --objective info --seed $seed
        train draw-gan-seed$seed draw_gan.py $mnist --objective draw-gan --epochs 5 --seed $seed
    done
    measure draw-seeds eval runs/{vae,info,draw-gan}-seed{1,2} --paper-units
    times runs/{vae,info,draw,draw-gan}-mnist | tee results/times.txt
}

times() {  # times RUN...: what training took, out of each run's log.csv (Figure 10)
    python - "$@" <<'EOF'
import csv, json, sys
for run in sys.argv[1:]:
    batch_size, rows = json.load(open(f"{run}/args.json"))["batch_size"], [*csv.DictReader(open(f"{run}/log.csv"))]
    steps = [0, *(int(row["step"]) for row in rows)]
    seconds = sum((b - a) * batch_size / float(row["images_per_s"]) for a, b, row in zip(steps, steps[1:], rows))
    print(f"{run}: {steps[-1]} updates of {batch_size} in {seconds / 60:.1f} minutes")
EOF
}

telugu() {  # Table II
    for objective in vae info; do train "$objective-telugu" vae.py --dataset telugu --objective $objective --epochs 40; done
    train draw-telugu draw_gan.py --dataset telugu --batch-size 25 --epochs 25
    train draw-gan-telugu draw_gan.py --dataset telugu --objective draw-gan --batch-size 25 --epochs 10
    measure draw-table2 eval runs/{vae,info,draw,draw-gan}-telugu --features pixels --n 1500 --paper-units
}

dcrw() {  # Table I, Figures 4 to 6: times.png, losses.png and the last lines of log.csv
    train dcrw-mnist dcrw.py $mnist --epochs 8
    train dcrw-none-mnist dcrw.py $mnist --read none --epochs 8
}

table1() {  # DE-GAN: Tables I, V and VI, and a tournament
    for objective in vae info aae; do train "$objective-mnist-labels" vae.py $mnist --conditional --objective $objective; done
    train gan-mnist-labels dcgan.py $mnist --conditional --arch dense --epochs 12
    train wgan-mnist-labels dcgan.py $mnist --conditional --objective wgan --epochs 32
    train dcgan-mnist-labels dcgan.py $mnist --conditional --epochs 12
    train de_gan-mnist-labels de_gan.py $mnist --conditional --epochs 6 --accuracy-every 200
    measure de_gan-tables eval runs/{vae,info,aae,gan,wgan,dcgan,de_gan}-mnist-labels
    train dcgan-mnist dcgan.py $mnist --epochs 3
    train de_gan-mnist de_gan.py $mnist --epochs 3
    measure tournament gam runs/gran{1,3,5}-mnist runs/dcgan-mnist runs/de_gan-mnist
    measure dim dim --dataset mnist --out results/dim.png
}

table7() {  # DE-GAN on CIFAR-10: Table VII, Figures 9 and 10
    train vae-cifar10-labels vae.py --dataset cifar10 --conditional --arch conv --epochs 4
    train dcgan-cifar10-labels de_gan.py --dataset cifar10 --conditional --noise plain --lambda-hidden 0 --iters 600 --accuracy-every 200
    train de_gan-cifar10-labels de_gan.py --dataset cifar10 --conditional --vae-iters 400 --iters 1000 --accuracy-every 200
    measure de_gan-table7 eval runs/{dcgan,vae,de_gan}-cifar10-labels --n 5000
    for set in mnist cifar10; do measure dim-$set dim --dataset $set --n 10000 --k 20 100 1000 --out results/dim-$set.png; done
}

mnist() {  # the README's first table, after gran, draw, dcrw and table1
    measure mnist eval runs/{gran1,gran3,gran5,draw,draw-gan,vae,info,dcrw}-mnist runs/{dcgan,de_gan}-mnist-labels --paper-units
}

convergence() {  # DE-GAN: Figure 6, three seeds of each
    for seed in 0 1 2; do
        local flags="$mnist --conditional --epochs 2 --accuracy-every 100 --seed $seed"
        train "de_gan-seed$seed" de_gan.py $flags
        train "de_gan-plain-seed$seed" de_gan.py $flags --noise plain --lambda-hidden 0
    done
}

faces() {  # the slides' explorations
    train dcgan-faces dcgan.py --dataset faces --batch-size 64 --epochs 35
    for look in walk arithmetic filters forget features; do explore dcgan-faces $look; done
    train dcgan-mnist-labels dcgan.py $mnist --conditional --epochs 12
    explore dcgan-mnist-labels nearest
}

precision() {  # README, Speed: bfloat16 against float32, three seeds of each
    local seed
    for seed in 0 1 2; do
        train dcgan-bf16-seed$seed dcgan.py $mnist --epochs 2 --seed $seed --amp
        train dcgan-f32-seed$seed dcgan.py $mnist --epochs 2 --seed $seed --no-amp
    done
    measure precision eval runs/dcgan-{bf16,f32}-seed{0,1,2}
}

cifar10() {  # Table 5, second column; of one core's time an update takes two seconds
    train gran1-cifar10 gran.py --dataset cifar10 --steps 1 --batch-size 32 --iters 600 --sample-every 100
}

assets() {  # the README's pictures
    mkdir -p assets
    local name
    cp "$(ls runs/first/samples/*.png | tail -n 1)" assets/gran5-digits.png
    for name in gran{1,3,5}-mnist {vae,info,draw,draw-gan}-mnist {draw,draw-gan}-telugu {aae,gan,wgan,dcgan,de_gan}-mnist-labels; do
        cp "$(ls runs/$name/samples/*.png | tail -n 1)" "assets/$name.png"
    done
    for name in gran5 draw; do cp runs/$name-mnist/steps.gif assets/$name-mnist.gif; done
    cp runs/gran5-mnist/steps.png assets/gran5-mnist-steps.png
    cp runs/gran3-once/nearest.png assets/gran3-nearest.png
    for name in once per-step; do cp runs/gran3-$name/steps.png assets/gran3-$name.png; done
    cp "$(ls runs/de_gan-cifar10-labels/samples/*.png | tail -n 1)" assets/de_gan-cifar10.png
    for name in dcrw dcrw-none; do
        cp runs/$name-mnist/times.png assets/$name-times.png
        cp runs/$name-mnist/losses.png assets/$name-losses.png
    done
    for name in noise interpolation; do cp runs/de_gan-mnist-labels/$name.png assets/de_gan-$name.png; done
    for name in mnist cifar10; do cp results/dim-$name.png assets/; done
    cp "$(ls runs/gran1-cifar10/samples/*.png | tail -n 1)" assets/gran1-cifar10.png
    [ -z "${ITERS:-}" ] || return 0  # a rehearsal has none of these
    cp runs/gran1-cifar10/samples/000300.png assets/gran1-cifar10-300.png
    for name in walk arithmetic filters forget; do cp runs/dcgan-faces/explore/$name.png assets/faces-$name.png; done
    python - assets/*.png <<'EOF'
import sys
from PIL import Image, ImageChops
for path in sys.argv[1:]:  # grey pictures as grey: half the bytes
    image = Image.open(path).convert("RGB")
    red, green, blue = image.split()
    grey = not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox())
    (red if grey else image).save(path, optimize=True)
EOF
}

for part in ${*:-first gran draw dcrw table1 mnist convergence table7 telugu faces precision cifar10 assets}; do $part; done
