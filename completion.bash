# Completion for bash:  . completion.bash   (then  sh run_pipeline.sh <Tab>  and  python run_pipeline.py <Tab>)

_sap3d_names() { # folder pattern: names of the folders that match
    local path
    for path in $1; do [ -d "$path" ] && basename "${path%/images}"; done
}

_sap3d() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} script=${COMP_WORDS[1]} train=${ROOT_DIR:-.}/dataset/data/train words
    case $before in
        --from-stage | --only-stage) words="relpose booth recon eval" ;;
        --engine) words="local ray" ;;
        --object_type) words=$(_sap3d_names "$train/*") ;;
        *)
            case $script:$COMP_CWORD in
                *run_pipeline.sh:2) words="$(_sap3d_names "$train/*") --setup --test --help" ;;
                *run_pipeline.sh:3) words=$(_sap3d_names "$train/${COMP_WORDS[2]}/*/images") ;;
                *run_pipeline.sh:4) words="1 2 3 4 5" ;;
                *run_pipeline.sh:5) words="0 cpu" ;;
                *run_pipeline.sh:*) words="--quick --seed --from-stage --only-stage --dry-run relpose. booth. recon. eval." ;;
                *run_pipeline.py:*) words="--object_type --views --objects --gpus --quick --seed --from-stage --only-stage --set --retries --dry-run --engine --address --cpus --memory_gb" ;;
                *) COMPREPLY=($(compgen -f -- "$current")); return ;;
            esac
            ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}

complete -o default -F _sap3d sh python python3
