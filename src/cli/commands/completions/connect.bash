# For this shell: source <(connect completions bash)
# For good:       connect completions bash > ~/.local/share/bash-completion/completions/connect
_connect() {
    local IFS=$'\n'
    COMPREPLY=($(connect completions words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
    [ -n "${COMPREPLY[0]}" ] || COMPREPLY=()
}
# Where we have no words, as after --file, the shell offers files.
complete -o default -F _connect connect
