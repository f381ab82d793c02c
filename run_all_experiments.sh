#!/usr/bin/env bash
#
# Compare all methods with one command: check this machine, train with each method under one recipe, report.
# `./run_all_experiments.sh --help` says more.

set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./run_all_experiments.sh [--nproc N] [--methods A,B] [--repeats N] [any flag of the training scripts]
       ./run_all_experiments.sh --scaling 1,2,4 [--weak] [the same, but for --nproc]
       ./run_all_experiments.sh --study classic [flags that shall differ]
       ./run_all_experiments.sh --nnodes N --node-rank R --master-addr HOST[:PORT] [the same]    on each of N hosts

Checks this machine, trains the same model on the same data with each method under one recipe, and compares the
results. Needs no preparation: if the active Python lacks the packages, they are installed into .venv, once.

  --nproc N        ranks to start on a host (default: the number of GPUs, or 4 where there are none to compare; where
                   there are several hosts: the number of GPUs, or 1)
  --methods A,B    of baseline_ddp,all_reduce,ps (default: all, in this order), and variants of them, as their results
                   files are called: all_reduce_overlapped, baseline_ddp_fp16, ps_pipelined, ps_ssp_2servers ...
  --repeats N      train everything N times, each time with the next seed and another method first, so that drift
                   of the machine hits all alike; results go to repeat_1/, repeat_2/ ... (default: 1)
  --scaling N,N    speed-up study: the single device, and each method at these numbers of ranks, with one global
                   batch (strong scaling); results go to ranks_1/, ranks_2/ ...
  --weak           with --scaling: one batch per replica, so that the global batch grows (weak scaling)
  --study classic  speed-up study of ResNet-18 on CIFAR-10 at 224x224, global batch 512, one epoch: one device, and two
  --resume         go on where an interrupted run with the same flags stopped: what has finished is kept, and the
                   method that was interrupted continues from its last checkpoint

Several hosts: start it on each, with the same flags but for --node-rank. They wait for each other, and train with each
method over all of them. Results, report and plots are written on host 0.

  --nnodes N             number of hosts
  --node-rank R          which of them this is: 0, 1 ...
  --master-addr HOST     address of host 0 in the network of the hosts; HOST:PORT for another port than 29500
  --master-port PORT     the same, by itself

Every other flag goes to each training script that knows it; `python check_environment.py --help` lists them. The
most used:

  --epochs N             (default: 3)
  --global-batch-size N  samples per optimizer step, the same for each method (default: --batch-size x ranks)
  --data-dir DIR         images in DIR/train and DIR/val; without any, an embedded data set is used
  --output-dir DIR       for results_*.json, performance_report.txt, plots/ and saved_models/ (default: .)

Without --resume, results that are in the output directory already are moved to previous_results/ there. PYTHON=/path/to/python3
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
    forward_signals
    choose_python "$repo/requirements.txt"
    scratch=$(mktemp -d)
    trap 'rm -rf -- "$scratch"' EXIT

    headline "Checking this machine"
    run check_environment.py --plan="$scratch/plan" "$@"
    # The check has worked out what the flags mean, as bash variables; nothing here parses them a second time.
    source "$scratch/plan"
    rm -rf -- "$scratch"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    # Hosts may share the directory. None trains before host 0 has come to the first run, and so is done with this.
    ((resume || host)) || set_earlier_results_aside
    advise_to_resume "$@"
    train_each
    if ((host)); then
        headline "Done"
        echo "Results, report and plots: on host 0 (${hosts[*]:4:2}), in its output directory"
        return
    fi
    headline "Comparing"
    run analyze_results.py --results-dir="$output_dir" --output-dir="$output_dir"
    headline "Files"
    list_files
}

headline() {
    printf '\n=== %s ===\n' "$1"
}

# Runs one of the scripts; ends with its exit code if it fails, after it has said why.
run() {  # SCRIPT ARGUMENT...
    local status=0
    supervise "$PYTHON" "$repo/$1" "${@:2}" || status=$?
    ((status == 0)) && return
    ((status == 2)) || printf 'Stopped here, with exit code %s; no later step was started.\n%s' "$status" \
        "${advice:+$advice$'\n'}" >&2
    exit "$status"
}

# From here on there is something to go on from.
advise_to_resume() {  # ARGUMENT...
    ((resume)) || set -- "$@" --resume
    advice="To go on from here: $(printf '%q ' "$0" "$@")"
    advice=${advice% }
}

set_earlier_results_aside() {
    local path moved=() target
    for path in "$output_dir"/{results_*.json,performance_report.txt,report*.html,plots,profiles} \
        "$output_dir"/{saved_models,checkpoints,repeat_*,ranks_*}; do
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
    local repeat turn place command folder title several=() number=0
    for ((repeat = 0; repeat < repeats; repeat++)); do
        for turn in "${!methods[@]}"; do
            place=$(((repeat + turn) % ${#methods[@]}))
            eval "command=(${commands[place]})"  # quoted by the plan
            command[0]=$repo/${command[0]}
            title="Method $((turn + 1)) of ${#methods[@]}: ${methods[place]}" folder=$output_dir
            if ((repeats > 1)); then
                title="Repeat $((repeat + 1)) of $repeats, ${title,}" folder+=/repeat_$((repeat + 1))
                command+=(--seed=$((seed + repeat)))  # the last of a flag's values counts
            fi
            if [[ -n ${folders[place]} ]]; then
                title+=", ${folders[place]}" folder+=/${folders[place]}
            fi
            [[ $folder == "$output_dir" ]] || command+=(--output-dir="$folder")
            headline "$title"
            number=$((number + 1))
            ((${#hosts[@]})) && several=("${hosts[@]}" --run "$number")
            run launch/torchrun.py ${several[@]+"${several[@]}"} "${ranks[place]}" "${command[@]}"
        done
    done
}

list_files() {
    local path
    for path in "$output_dir"/{,repeat_*/}{,ranks_*/}{performance_report.txt,report*.html,results_*.json,plots/*,saved_models/*}; do
        [[ -f $path ]] && printf '%9s  %s\n' "$(numfmt --to=iec --suffix=B "$(stat -Lc %s -- "$path")")" "$path"
    done
    return 0
}

main "$@"
