# Counts the Rust files given: lines of code and comments for each room, names that mean two things, and what is too long.
# Blank lines and unit tests (last in a file) are left out. Fails if more than ten type or constant names occur in
# two files.

FNR == 1 { end_file(); file = FILENAME; sub(/^.*src\//, "", file); room = file; sub(/[\/.].*/, "", room); tests = 0; marked = 0 }
tests { next }
/^#\[cfg\(test\)\]/ { marked = 1; next }
marked && /^mod tests/ { tests = 1; next }
{ marked = 0 }
/^[ \t]*$/ { next }
/^[ \t]*\/\// { comments[room]++; next }
{ code[room]++; in_file++; count_function(); note_name() }
END {
    end_file()
    for (room in code) rooms = rooms " " room
    count = split(rooms, names, " ")
    sort(names, count)
    print "   code  comments  room"
    for (i = 1; i <= count; i++) {
        room = names[i]
        line(code[room], comments[room], room)
        all_code += code[room]
        all_comments += comments[room]
    }
    line(all_code, all_comments, "all of it: no blank lines, no unit tests")
    printf "%7d  lines in the longest function, %s\n", longest, longest_name
    printf "%7d  files of more than 300 lines%s\n", long_files, long_list
    bad = report("type", types) + report("constant", constants)
    exit bad > 0
}

function line(code, comments, what) {
    printf "%7d  %7.1f %%  %s\n", code, 100 * comments / (code + comments), what
}

function end_file() {
    if (in_file > 300) { long_files++; long_list = long_list "\n           " file " " in_file }
    in_file = 0
    fn_name = ""
}

# A function ends where a brace stands below its first word, as rustfmt sets it.
function count_function() {
    if (fn_name == "" && match($0, /^ *(pub(\([a-z]+\))? )?(const )?fn [a-z_0-9]+/)) {
        fn_name = substr($0, RSTART, RLENGTH)
        match(fn_name, /^ */)
        fn_end = substr(fn_name, 1, RLENGTH) "}"
        declared_end = substr(fn_name, 1, RLENGTH) ")"
        sub(/^.*fn /, "", fn_name)
        fn_lines = 0
        if ($0 ~ /}$/ || $0 ~ /;$/) { fn_name = ""; return }
    }
    if (fn_name == "") return
    fn_lines++
    # A trait's function has no body.
    if (fn_lines > 1 && index($0, declared_end) == 1 && $0 ~ /;$/) fn_name = ""
    if ($0 == fn_end) {
        if (fn_lines > longest) { longest = fn_lines; longest_name = fn_name " in " file }
        fn_name = ""
    }
}

function note_name(   words, at) {
    text = $0
    sub(/^ */, "", text)
    sub(/^pub(\([a-z: ]+\))? /, "", text)
    split(text, words, /[ <(:;={]/)
    if (words[1] ~ /^(struct|enum|trait|union)$/ || (words[1] == "type" && $0 !~ /^    /)) add(types, words[2])
    if (words[1] ~ /^(const|static)$/ && text ~ /^[a-z]+ [A-Z_0-9]+:/) add(constants, words[2])
}

function add(names, name) {
    if (!index(names[name] " ", " " file " ")) names[name] = names[name] " " file
}

function report(kind, names,   name, list, count, parts, sorted, i) {
    for (name in names) {
        if (split(names[name], parts, " ") > 1) sorted[++count] = name ":" names[name]
    }
    sort(sorted, count)
    for (i = 1; i <= count; i++) list = list "\n           " sorted[i]
    printf "%7d  %s names in more than one file; at most ten may be%s\n", count, kind, list
    return count > 10
}

function sort(list, count,   i, j, moved) {
    for (i = 2; i <= count; i++) {
        moved = list[i]
        for (j = i - 1; j > 0 && list[j] > moved; j--) list[j + 1] = list[j]
        list[j + 1] = moved
    }
}
