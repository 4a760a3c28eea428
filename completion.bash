# Completion for bash:  . completion.bash   (then  sh run_pipeline.sh <Tab>  and  python run_pipeline.py <Tab>)

_sap3d_names() { # script pattern: names of the folders that match below ROOT_DIR's and the script's dataset/data/train
    local folder path
    for folder in "${ROOT_DIR:-.}" "$(dirname -- "$1")"; do
        for path in "$folder/dataset/data/train/"$2; do [ -d "$path" ] && basename "${path%/images}"; done
    done
}

_sap3d() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} script=${COMP_WORDS[1]} type= k words
    [ "$current" != = ] || before== current= # bash makes --preset=full three words
    for ((k = 2; k < COMP_CWORD; k++)); do [ "${COMP_WORDS[k]}" != --object_type ] || type=${COMP_WORDS[k + 1]}; done
    case $before in
        --from-stage | --only-stage) words="relpose booth recon eval" ;;
        = | --preset) words="tiny full full-11gb" ;;
        --engine) words="local ray" ;;
        --object_type) words=$(_sap3d_names "$script" "*") ;;
        --objects) words=$(_sap3d_names "$script" "$type/*/images") ;;
        *)
            case $script:$COMP_CWORD in
                *run_pipeline.sh:2) words="$(_sap3d_names "$script" "*") --setup --test --help" ;;
                *run_pipeline.sh:3) words=$(_sap3d_names "$script" "${COMP_WORDS[2]}/*/images") ;;
                *run_pipeline.sh:4) words="1 2 3 4 5" ;;
                *run_pipeline.sh:5) words="0 cpu" ;;
                *run_pipeline.sh:*) words="--quick --preset=tiny --preset=full --preset=full-11gb --seed --from-stage --only-stage --dry-run relpose. booth. recon. eval." ;;
                *run_pipeline.py:*) words="--object_type --views --objects --gpus --quick --preset --seed --from-stage --only-stage --set --retries --dry-run --engine --address --cpus --memory_gb" ;;
                *) COMPREPLY=($(compgen -f -- "$current")); return ;;
            esac
            ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}

complete -o default -F _sap3d sh python python3
