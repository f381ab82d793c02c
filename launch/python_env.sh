# Sourced by run_all_experiments.sh and tests/run: finds a Python that has the packages, or makes one in .venv.
#
#   choose_python REQUIREMENTS...   sets PYTHON, an interpreter that satisfies these requirements files
#   supervise COMMAND...            runs a command that a signal to this script ends as well
#
# The user's own choice is PYTHON=/path/to/python3 in the environment: then nothing is installed.

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo/.venv
child=  # process id of the command that supervise runs
after_interruption=  # what to print where a signal ends the script
heartbeat=  # process id of the line printer of a silent installation

fail() {  # STATUS MESSAGE
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

# Bash runs a trap only when its foreground command has ended, so commands that take long run in the
# background and are waited for.
supervise() {
    local status=0
    "$@" &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}

on_signal() {  # STATUS
    trap '' INT TERM HUP
    [[ -z $heartbeat ]] || kill "$heartbeat" 2>/dev/null || true
    if [[ -n $child ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    [[ -z $after_interruption ]] || printf '%s\n' "$after_interruption" >&2
    fail "$1" "interrupted"
}

forward_signals() {
    trap 'on_signal 129' HUP
    trap 'on_signal 130' INT
    trap 'on_signal 143' TERM
}

new_enough() {  # PYTHON
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

lacks() {  # PYTHON REQUIREMENTS... : prints what is missing; fails if nothing is
    local python=$1
    shift
    ! "$python" "$repo/gradsync/requirements_check.py" "$@"
}

satisfied() {
    ! lacks "$@" >/dev/null 2>&1
}

choose_python() {
    local active
    if [[ -n ${PYTHON:-} ]]; then
        use_named_python "$@"
        return
    fi
    active=$(active_python) || fail 2 "no Python 3.10 or newer is on the PATH; install one, or name it: PYTHON=/path/to/python3 $0"
    if satisfied "$active" "$@"; then
        PYTHON=$active
        return
    fi
    PYTHON=$venv/bin/python
    if venv_works && satisfied "$PYTHON" "$@"; then
        return
    fi
    set_up_venv "$active" "$@"
}

use_named_python() {
    local missing
    new_enough "$PYTHON" || fail 2 "PYTHON=$PYTHON: not a Python 3.10 or newer"
    if missing=$(lacks "$PYTHON" "$@"); then
        fail 2 "PYTHON=$PYTHON: ${missing//$'\n'/, }; install that, or unset PYTHON to have it done in .venv"
    fi
}

active_python() {
    local name
    for name in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null && new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    return 1
}

venv_works() {
    new_enough "$venv/bin/python" && "$venv/bin/python" -c 'import pip' >/dev/null 2>&1
}

set_up_venv() {  # ACTIVE REQUIREMENTS...
    local active=$1 lock file arguments=()
    shift
    exec {lock}<"$repo"  # two runs at once: the second waits, and then finds the work done
    if command -v flock >/dev/null && ! flock --nonblock "$lock"; then
        echo "Waiting for another run to finish setting up .venv ..."
        supervise flock "$lock"
    fi
    if ! { venv_works && satisfied "$PYTHON" "$@"; }; then
        create_venv "$active"
        for file in "$@"; do
            satisfied "$PYTHON" "$file" || arguments+=(-r "$file")
        done
        install_packages "${arguments[@]}"
        satisfied "$PYTHON" "$@" || fail 1 ".venv: after the installation: $(lacks "$PYTHON" "$@" | paste -sd, -)"
    fi
    exec {lock}<&-
}

create_venv() {  # ACTIVE
    local make=("$1" -m venv) shared=0
    # What the active Python has already need not be downloaded again.
    if satisfied "$1" "$repo/requirements.txt"; then
        shared=1 make+=(--system-site-packages)
    elif venv_works; then
        return  # an earlier installation was interrupted, or the requirements have grown
    fi
    venv_works || make+=(--clear)
    "$1" -c 'import venv, ensurepip' 2>/dev/null \
        || fail 2 "$1 cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
    echo "Creating .venv (Python packages for this directory only) ..."
    supervise "${make[@]}" "$venv" || fail 1 "$venv could not be created"
    ((shared)) && share_packages "$1"
    return 0
}

# --system-site-packages means those of the Python that a virtual environment was made from; if the active
# Python is one itself, its own packages are added by path.
share_packages() {  # ACTIVE
    local own target
    own=$("$1" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")')
    target=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    [[ -z $own || $own == "$target" ]] || printf '%s\n' "$own" >"$target/shared.pth"
}

install_packages() {
    local status=0
    if lacks "$PYTHON" "$repo/requirements.txt" | grep -q '^torch'; then
        echo "Installing PyTorch and the other packages into .venv: about 5.5 GB on disk, once; it takes a few minutes."
    else
        echo "Installing a few small packages into .venv ..."
    fi
    [[ -t 1 ]] || start_heartbeat  # on a terminal, pip shows progress itself
    supervise "$PYTHON" -m pip install --disable-pip-version-check "$@" || status=$?
    [[ -z $heartbeat ]] || kill "$heartbeat" 2>/dev/null || true
    heartbeat=
    ((status == 0)) || fail 1 "pip could not install the packages (its own lines above say why); run this again to go on"
}

start_heartbeat() {
    local script=$$
    (
        exec {lock}<&-  # or the lock would outlive this script by the rest of a sleep
        while sleep 10 >/dev/null 2>&1 && kill -0 "$script" 2>/dev/null; do
            echo "... still installing, ${SECONDS} s so far"
        done
    ) &
    heartbeat=$!
}
