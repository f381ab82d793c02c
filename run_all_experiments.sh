#!/usr/bin/env bash
#
# Compare all methods with one command: check this machine, train with each method under one recipe, report.
# `./run_all_experiments.sh --help` says more.

set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./run_all_experiments.sh [--nproc N] [--methods A,B] [--repeats N] [any flag of the training scripts]

Checks this machine, trains the same model on the same data with each method under one recipe, and compares the
results. Needs no preparation: if the active Python lacks the packages, they are installed into .venv, once.

  --nproc N        ranks to start (default: the number of GPUs, or 4 where there are none to compare)
  --methods A,B    of baseline_ddp,all_reduce,ps (default: all, in this order)
  --repeats N      train everything N times, each time with the next seed and another method first, so that drift
                   of the machine hits all alike; results go to repeat_1/, repeat_2/ ... (default: 1)

Every other flag goes to each training script; `python check_environment.py --help` lists them. The most used:

  --epochs N             (default: 3)
  --global-batch-size N  samples per optimizer step, the same for each method (default: --batch-size x ranks)
  --data-dir DIR         images in DIR/train and DIR/val; without any, an embedded data set is used
  --output-dir DIR       for results_*.json, performance_report.txt, plots/ and saved_models/ (default: .)

Results that are in the output directory already are moved to previous_results/ there. PYTHON=/path/to/python3
chooses the interpreter, OMP_NUM_THREADS the CPU threads of each rank.

Exit codes: 0 done, 1 a step failed, 2 refused input, 130 or 143 interrupted.
TEXT
}

main() {
    local argument
    for argument in "$@"; do
        case $argument in
            -h | --help)
                usage
                return
                ;;
        esac
    done
    source "$(dirname -- "${BASH_SOURCE[0]}")/launch/python_env.sh"
    to_take_up_again "$@"
    forward_signals
    choose_python "$repo/requirements.txt"
    scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch"' EXIT

    headline "Checking this machine"
    run check_environment.py --plan="$scratch/plan" "$@"
    read_plan "$scratch/plan"
    rm -rf -- "$scratch"
    keep_training_flags "$@"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    set_earlier_results_aside
    train_each
    headline "Comparing"
    run analyze_results.py --results-dir="$output_dir" --output-dir="$output_dir"
    headline "Files"
    list_files
}

# Sets after_interruption: the command line that goes on where an interrupted one has stopped.
to_take_up_again() {
    local argument words=("$0")
    for argument in "$@"; do
        [[ $argument == --resume ]] || words+=("$argument")
    done
    words+=(--resume)
    after_interruption="To go on from here: ${words[*]@Q}"
}

headline() {
    printf '\n=== %s ===\n' "$1"
}

# Runs one of the scripts; ends with its exit code if it fails, after it has said why.
run() {  # SCRIPT ARGUMENT...
    local status=0
    supervise "$PYTHON" "$repo/$1" "${@:2}" || status=$?
    ((status == 0)) && return
    ((status == 2)) || printf 'Stopped here, with exit code %s; no later step was started.\n' "$status" >&2
    exit "$status"
}

# The check has worked out what the flags mean; nothing here parses them a second time.
read_plan() {  # FILE
    local line value
    methods=()
    while IFS= read -r line; do
        value=${line#* }
        case ${line%% *} in
            nproc) nproc=$value ;;
            global_batch) global_batch=$value ;;
            threads) threads=$value ;;
            output_dir) output_dir=$value ;;
            repeats) repeats=$value ;;
            seed) seed=$value ;;
            method) methods+=("$value") ;;
        esac
    done <"$1"
}

# Sets training_flags: the user's flags but for those of this script, and the one global batch.
keep_training_flags() {
    training_flags=()
    while (($#)); do
        case $1 in
            --nproc | --methods | --repeats) shift ;;
            --nproc=* | --methods=* | --repeats=*) ;;
            *) training_flags+=("$1") ;;
        esac
        shift
    done
    training_flags+=(--global-batch-size="$global_batch")
}

set_earlier_results_aside() {
    local path moved=() target
    for path in "$output_dir"/{results_*.json,performance_report.txt,report*.html,plots,saved_models,repeat_*}; do
        [[ -e $path || -L $path ]] && moved+=("$path")
    done
    ((${#moved[@]})) || return 0
    [[ ! -L $output_dir/previous_results ]] \
        || fail 2 "$output_dir/previous_results: a link to another directory; nothing is moved there. Remove the link"
    target=$output_dir/previous_results/$(date +%Y-%m-%d_%H-%M-%S)
    while [[ -e $target ]]; do target+=-again; done
    mkdir -p -- "$target"
    mv -- "${moved[@]}" "$target"
    echo "Earlier results are now in $target"
}

train_each() {
    local repeat place entry order
    for ((repeat = 0; repeat < repeats; repeat++)); do
        order=("${methods[@]:repeat % ${#methods[@]}}" "${methods[@]:0:repeat % ${#methods[@]}}")
        for place in "${!order[@]}"; do
            entry=${order[place]}
            if ((repeats == 1)); then
                headline "Method $((place + 1)) of ${#methods[@]}: ${entry%% *}"
                run launch/torchrun.py "$nproc" "$repo/${entry#* }" "${training_flags[@]}"
            else
                headline "Repeat $((repeat + 1)) of $repeats, method $((place + 1)) of ${#methods[@]}: ${entry%% *}"
                # The last of a flag's values counts.
                run launch/torchrun.py "$nproc" "$repo/${entry#* }" "${training_flags[@]}" \
                    --output-dir="$output_dir/repeat_$((repeat + 1))" --seed=$((seed + repeat))
            fi
        done
    done
}

list_files() {
    local path
    for path in "$output_dir"/{,repeat_*/}{performance_report.txt,report*.html,results_*.json,plots/*,saved_models/*}; do
        [[ -f $path ]] && printf '%9s  %s\n' "$(numfmt --to=iec --suffix=B "$(stat -Lc %s -- "$path")")" "$path"
    done
    return 0
}

main "$@"
