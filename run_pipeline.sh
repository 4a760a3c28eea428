#!/bin/sh
# One object from photos to figures: the three stages and the evaluation, in order. What is finished is skipped, what was
# interrupted is resumed. The first call makes .venv and installs requirements.txt. Works from any directory.
set -eu

script=$0
[ ! -L "$script" ] || script=$(readlink -f -- "$0" 2> /dev/null) || script=$0 # called through a link: the repository is where the link leads
here=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
venv=$here/.venv

main() {
    [ $# -gt 0 ] || { usage; exit 2; }
    [ "$1" = --test ] || for argument; do # what follows --test is pytest's
        case $argument in -h | --help) usage; exit 0 ;; esac
    done
    case $1 in
        --setup) find_python; exit 0 ;;
        # Most tests wait for programs that they start, so two processes take half of the time; a file's tests share what they made.
        --test) shift; find_python; cd "$here"; exec "$python" -m pytest tests -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder "$@" ;;
        -*) fail "TYPE OBJECT VIEWS GPU come first and options after them, got '$1' first; sh run_pipeline.sh -h says more" ;;
    esac
    read_arguments "$@"
    shift 4
    left=$#
    while [ "$left" -gt 0 ]; do # take out what is for this script, keep what is for the stages
        argument=$1
        shift
        left=$((left - 1))
        case $argument in
            --seed | --from-stage | --only-stage) shift; left=$((left - 1)) ;;
            --preset) argument=--preset=$1; shift; left=$((left - 1)); set -- "$@" "$argument" ;;
            relpose.weights=[!/]* | relpose.cameras=[!/]* | booth.model=[!/]* | recon.model=[!/]* | recon.cameras=[!/]*)
                set -- "$@" "${argument%%=*}=$PWD/${argument#*=}" ;; # the stages run in the repository's folder
            --seed=* | --from-stage=* | --only-stage=* | --dry-run) ;;
            *) set -- "$@" "$argument" ;;
        esac
    done
    [ -z "$seed" ] || set -- "relpose.seed=$seed" "booth.seed=$seed" "recon.seed=$seed" "$@"
    find_python
    choose_device
    cd "$here"
    check_settings "$@"
    take_lock

    stage "stage 1 of 3: cameras (RelPose++)" relposepp.run relpose "$@"
    stage "stage 2 of 3: test-time training and novel views (CameraBooth)" camerabooth.run booth "$@"
    stage "stage 3 of 3: NeRF and mesh (3D_Recon)" 3D_Recon.threestudio.launch recon "$@"
    stage "evaluation" sap3d.evaluate eval "$@"
    end 0
}

usage() {
    cat << END
usage: sh run_pipeline.sh TYPE OBJECT VIEWS GPU [options] [stage.key=value ...]

  TYPE OBJECT   photos in dataset/data/train/TYPE/OBJECT/images
  VIEWS         number of photos to use: the first VIEWS by name, at least 1
  GPU           index of the GPU (0), or cpu
  stage.key     a setting of relpose, booth, recon or eval, such as booth.steps=100

  --quick             fewer steps: a first look
  --preset=NAME       tiny (default), full or full-11gb: published weights (docs/FULL_PRESET.md)
  --seed N            the seed of every stage
  --from-stage STAGE  begin at relpose, booth, recon or eval; what lies before it is taken as it is
  --only-stage STAGE  run this stage alone
  --dry-run           write nothing: which stages would run, and why

       sh run_pipeline.sh --setup          only make .venv and install requirements.txt
       sh run_pipeline.sh --test           the tests

  PYTHON=...    use this Python (with requirements.txt installed) and make no .venv
  ROOT_DIR=...  write results below this folder, and look for data there first

available:
END
    for type in $(types); do
        echo "  $type: $(objects "$type" | tr '\n' ' ')"
    done
}

# --- arguments ---------------------------------------------------------------------------------------------------------
fail() {
    printf 'error: %s\n' "$(printf '%s' "$*" | tr '\n' ' ')" >&2 # on one line, whatever the user has typed
    exit 2
}

list() { # words, one a line, as "a, b, c"
    tr '\n' ' ' | sed 's/ *$//; s/ /, /g'
}

types() { # names of the dataset types that have an object
    for folder in "${ROOT_DIR:-$here}" "$here"; do
        for images in "$folder"/dataset/data/train/*/*/images; do
            [ ! -d "$images" ] || basename "$(dirname "$(dirname "$images")")"
        done
    done | sort -u
}

objects() { # names of the objects of a type
    for folder in "${ROOT_DIR:-$here}" "$here"; do
        for images in "$folder/dataset/data/train/$1"/*/images; do
            [ ! -d "$images" ] || basename "$(dirname "$images")"
        done
    done | sort -u
}

check_name() {
    case $2 in
        [!A-Za-z0-9]* | *[!A-Za-z0-9._-]* | *..*)
            fail "$1 '$2' is not a plain name: use letters, digits, '.', '_' and '-', and no path" ;;
    esac
}

read_arguments() {
    [ $# -ge 4 ] || fail "TYPE OBJECT VIEWS GPU are needed, got $# of them; sh run_pipeline.sh -h says more"
    type=$1 object=$2 views=$3 gpu=$4
    shift 4
    check_name "dataset type" "$type"
    check_name "object name" "$object"
    [ -n "$type" ] && types | grep -qxF -- "$type" || fail "unknown dataset type '$type'; available: $(types | list)"
    [ -n "$object" ] && objects "$type" | grep -qxF -- "$object" || fail "unknown object '$object' of type $type; available: $(objects "$type" | list)"
    case $views in
        '' | *[!0-9]* | 0*) fail "number of views must be a whole number of at least 1, got '$views'" ;;
    esac
    case $gpu in
        cpu) ;;
        '' | *[!0-9]*) fail "GPU must be an index such as 0, or cpu, got '$gpu'" ;;
    esac
    seed='' from='' only='' dry_run='' option=''
    for argument; do
        if [ -n "$option" ]; then # the word before was an option that takes this one
            argument=$option=$argument option=
        fi
        while case $argument in --seed=0[0-9]*) ;; *) false ;; esac; do # the stages would read 010 as 8
            argument=--seed=${argument#--seed=0}
        done
        case $argument in
            --seed | --from-stage | --only-stage | --preset) option=$argument ;;
            --seed=*) seed=${argument#*=} ;;
            --from-stage=*) from=${argument#*=} ;;
            --only-stage=*) only=${argument#*=} ;;
            --dry-run) dry_run=1 ;;
            --quick | --preset=?* | relpose.*=* | booth.*=* | recon.*=* | eval.*=*) ;;
            -*) fail "unknown option '$argument'; sh run_pipeline.sh -h lists them" ;;
            *) fail "'$argument' is not a setting: write relpose.key=value, booth.key=value, recon.key=value or eval.key=value" ;;
        esac
        case $argument in
            --seed=) fail "--seed needs a whole number" ;;
            --seed=*[!0-9]*) fail "--seed must be a whole number of at least 0, got '$seed'" ;;
            --seed=???????????*) fail "--seed must be below 10000000000, got '$seed'" ;;
            --from-stage=relpose | --from-stage=booth | --from-stage=recon | --from-stage=eval) ;;
            --only-stage=relpose | --only-stage=booth | --only-stage=recon | --only-stage=eval) ;;
            --from-stage=* | --only-stage=*) fail "${argument%%=*} must be relpose, booth, recon or eval, got '${argument#*=}'" ;;
        esac
    done
    [ -z "$option" ] || fail "$option needs a value; sh run_pipeline.sh -h says which"
    [ -z "$from" ] || [ -z "$only" ] || fail "--from-stage and --only-stage exclude each other"
    [ -z "${ROOT_DIR:-}" ] || make_root
}

make_root() { # the folder ROOT_DIR, as an absolute path; a dry run makes none
    if [ -n "$dry_run" ] && [ ! -e "$ROOT_DIR" ]; then
        case $ROOT_DIR in /*) ;; *) ROOT_DIR=$PWD/$ROOT_DIR ;; esac
    else
        mkdir -p -- "$ROOT_DIR" 2> /dev/null && ROOT_DIR=$(CDPATH='' cd -- "$ROOT_DIR" && pwd) || fail "ROOT_DIR=$ROOT_DIR cannot be used as a folder; choose another"
    fi
    export ROOT_DIR
}

check_settings() { # an unknown setting of a late stage, or a path that is not there, is reported before the first one runs
    for argument; do
        case $argument in *=*) "$python" run_pipeline.py --check_settings ${from:+"--from-stage=$from"} ${only:+"--only-stage=$only"} "$@"; return ;; esac
    done
}

# --- Python and device -------------------------------------------------------------------------------------------------
is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

find_python() { # sets $python: the PYTHON given, or that of .venv, made and filled when needed
    if [ -n "${PYTHON:-}" ]; then
        python=$(command -v -- "$PYTHON") || fail "PYTHON=$PYTHON: no such program"
        case $python in /*) ;; *) python=$PWD/$python ;; esac
        is_new_enough "$python" || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
        missing=$("$python" -c 'import importlib.util as u; print(*[n for n in ("torch", "diffusers", "omegaconf", "embreex", "lpips") if not u.find_spec(n)])')
        [ -z "$missing" ] || fail "PYTHON=$PYTHON lacks $missing; run $PYTHON -m pip install -r $here/requirements.txt, or unset PYTHON"
        return
    fi
    python=$venv/bin/python
    wanted=$(cksum < "$here/requirements.txt")
    is_set_up || set_up
}

is_set_up() {
    [ -x "$python" ] && [ "$(cat "$venv/requirements.installed" 2> /dev/null)" = "$wanted" ] && is_new_enough "$python"
}

set_up() {
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" > /dev/null && is_new_enough "$candidate"; then break; fi
        candidate=
    done
    [ -n "$candidate" ] || fail "Python 3.11 or newer is needed and was not found; install one or set PYTHON to it"
    # Two first runs at once, of a job array for example, would fill one .venv: the second waits, and finds it made.
    if command -v flock > /dev/null && (: >> "$venv.lock") 2> /dev/null; then
        exec 8>> "$venv.lock"
        flock -n 8 2> /dev/null || { echo "waiting for another run that is making $venv"; flock 8 || :; } # a file system without locks: go on
        if is_set_up; then exec 8>&-; return; fi
    fi
    echo "first use: making $venv and installing requirements.txt (2 GB on a CPU, a few minutes)"
    is_new_enough "$python" || rm -rf "$venv"
    "$candidate" -m venv "$venv" || fail "$candidate cannot make a virtual environment (Debian and Ubuntu: apt install python3-venv), or set PYTHON"
    "$python" -m pip install --disable-pip-version-check -r "$here/requirements.txt" || fail "requirements.txt could not be installed, the lines above say why; the same command tries again"
    echo "$wanted" > "$venv/requirements.installed"
    exec 8>&-
}

choose_device() {
    if [ "$gpu" = cpu ]; then
        export CUDA_VISIBLE_DEVICES=
        echo "running on the CPU, as asked"
        return
    fi
    export CUDA_VISIBLE_DEVICES="$gpu"
    there=$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null) || there=
    if [ -n "$there" ] && ! printf '%s\n' "$there" | grep -qx "$gpu"; then
        fail "GPU $gpu is not among those of this machine ($(echo $there)); give one of them, or cpu"
    fi
    if ! command -v nvidia-smi > /dev/null || ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "no usable GPU: running on the CPU"
    else
        echo "running on GPU $gpu"
    fi
}

# --- one run at a time, and its end -----------------------------------------------------------------------------------------
lock='' child='' caught=''

take_lock() { # descriptor 9 holds the lock (sap3d/lock.py) while this script or one of its stages lives
    trap 'interrupted INT' INT
    trap 'interrupted TERM' TERM
    trap 'interrupted TERM' HUP
    export SAP3D_DRIVER=$$
    [ -z "$dry_run" ] || { export SAP3D_DRY_RUN=1; return; }
    file=${ROOT_DIR:-$here}/results/${type}_${object}_view_$views.lock
    while mkdir -p -- "${file%/*}" 2> /dev/null && (: <> "$file") 2> /dev/null; do
        exec 9<> "$file"
        status=0
        "$python" -m sap3d.lock 9 "$type" "$object" "$views" || status=$?
        case $status in
            0) lock=$file; export SAP3D_LOCK="$file"; return ;;
            75) ;; # it has just been removed by the run before: once more
            *) exit "$status" ;;
        esac
    done # a folder that cannot be written is reported by the first stage that has something to write
}

interrupted() { # the running stage writes a checkpoint and ends; a second signal ends it at once
    caught=$1
    [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || :
    [ -n "$child" ] || { [ "$1" = INT ] && end 130 || end 143; }
}

end() {
    [ -z "$lock" ] || rm -f -- "$lock"
    exit "$1"
}

# --- stages --------------------------------------------------------------------------------------------------------------
stage() { # title, module, prefix of its settings, all options
    title=$1 module=$2 prefix=$3
    shift 3
    [ "$prefix" != "$from" ] || from=
    [ -z "$from" ] && [ "${only:-$prefix}" = "$prefix" ] || return 0
    left=$#
    while [ "$left" -gt 0 ]; do # keep this stage's settings, without their prefix
        argument=$1
        shift
        left=$((left - 1))
        case $argument in
            --quick | --preset=*) set -- "$@" "$argument" ;;
            "$prefix".*) set -- "$@" "${argument#"$prefix".}" ;;
        esac
    done
    echo "== $title"
    if [ "$dry_run" = after ]; then
        echo "would run after that: python -m $module --type $type --object $object --views $views $*"
        return
    fi
    "$python" -m "$module" --type "$type" --object "$object" --views "$views" "$@" & # so that this script hears signals
    child=$! status=0
    wait "$child" || status=$?
    while [ -n "$caught" ] && kill -0 "$child" 2> /dev/null; do # the signal ended the wait, not the stage
        status=0
        wait "$child" || status=$?
    done
    child=
    case $caught in INT) status=130 ;; TERM) status=143 ;; esac
    case $status in
        0) ;;
        10) [ -z "$dry_run" ] || { dry_run=after; return; } ;;
        2 | 130 | 141 | 143) ;; # it has said why, or nobody reads what it says
        137) echo "error: $module was killed, by hand or for want of memory (then lower $(memory "$prefix") or use --quick); the same command resumes" >&2 ;;
        *) echo "error: $module ended with status $status, the lines above say why; the same command resumes" >&2 ;;
    esac
    [ "$status" -eq 0 ] || end "$status"
}

memory() { # settings that decide how much memory a stage takes
    case $1 in
        relpose) echo "relpose.starts and relpose.beam" ;;
        booth) echo "booth.batch_size and booth.nvs_batch_size" ;;
        recon) echo "recon.rays, recon.tile_rays and recon.grid" ;;
        *) echo "eval.size" ;;
    esac
}

main "$@"; exit # on one line: sh reads a script as it runs, and this one may be replaced meanwhile
