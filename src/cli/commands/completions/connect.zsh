#compdef connect
# For this shell: source <(connect completions zsh)
# For good:       connect completions zsh > "${fpath[1]}/_connect"
_connect() {
    local -a lines
    lines=("${(@f)$(connect completions words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    lines=("${(@)lines//:/\\:}")
    lines=("${(@)lines/$'\t'/:}")
    # Where we have no words, as after --file, the shell offers files.
    if [[ -n "$lines[1]" ]]; then _describe -V connect lines; else _files; fi
}
if [[ "$funcstack[1]" == _connect ]]; then _connect "$@"; else compdef _connect connect; fi
