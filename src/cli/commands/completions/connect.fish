# For this shell: connect completions fish | source
# For good:       connect completions fish > ~/.config/fish/completions/connect.fish
function __connect_words
    set -l tokens (commandline -opc)
    set -e tokens[1]
    set -l found (connect completions words -- $tokens (commandline -ct) 2>/dev/null)
    # Where we have no words, as after --file, the shell offers files.
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c connect -f -a '(__connect_words)'
