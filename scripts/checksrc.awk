# scripts/checksrc.awk: the rules of scripts/checksrc, over all files given. ceil: file of ceilings.
# Prints path:line: reason; the exit status is that of a search: 1 when something was found.

function say(line, text)
{
    printf "%s:%d: %s\n", FILENAME, line, text
    found = 1
}

# The line without strings, character constants and comments; carries comment state in in_comment.
function code_of(s,    out, c, two, i, n, quote)
{
    out = ""
    quote = ""
    n = length(s)
    for (i = 1; i <= n; i++) {
        c = substr(s, i, 1)
        two = substr(s, i, 2)
        if (in_comment) {
            if (two == "*/") { in_comment = 0; i++ }
        } else if (quote != "") {
            if (c == "\\") i++
            else if (c == quote) { quote = ""; out = out c }
        } else if (two == "/*") { in_comment = 1; i++ }
        else if (two == "//") break
        else if (c == "\"" || c == "'") { quote = c; out = out c }
        else out = out c
    }
    return out
}

# Is value above the rule, or above its ceiling? A ceiling that is too high is a finding too.
function over(what, value, most, line,    key, lim)
{
    key = path " " what
    lim = key in ceiling ? ceiling[key] : most
    used[key] = 1
    if (value > lim) return 1
    if (key in ceiling && value < ceiling[key]) {
        printf "%s:%d: %s has %d lines, its ceiling is %d: lower it in scripts/checksrc.allow\n",
            path, line, what, value, ceiling[key]
        found = 1
    }
    return 0
}

function end_file()
{
    if (path == "") return
    if (is_source && over("file", lines, 600, lines)) {
        printf "%s:%d: file has %d lines; 600 are the most: split it by noun\n", path, lines, lines
        found = 1
    }
}

function start_file()
{
    path = FILENAME
    sub(/^\.\//, "", path)
    in_comment = in_function = 0
    previous = ""
    is_c = path ~ /\.(c|h|def|cu|cuh)$/
    is_source = is_c || path ~ /\.(lua|py|sh|awk|js)$/ || path ~ /^scripts\/checksrc$/
    product = is_c && path ~ /^(core|kernels|plugins)\//
    folder = path
    if (folder ~ /^core\/[^\/]*\//) { sub(/^core\//, "", folder); sub(/\/.*/, "", folder) }
    else folder = path ~ /^core\// ? "main" : path ~ /^kernels\// ? "kernels" : \
        path ~ /^plugins\// ? "plugins" : ""
}

# Which folders a folder may include from. "own": headers without a folder.
function may_include(from, to)
{
    if (from == "" || from == "main" || to == "turbo") return 1
    return index(" " allowed[from] " ", " " to " ") > 0
}

function check_include(s,    what, top)
{
    if (s !~ /^[ \t]*#[ \t]*include[ \t]*"/) return
    what = s
    sub(/^[^"]*"/, "", what)
    sub(/".*/, "", what)
    top = what
    if (top ~ /\//) sub(/\/.*/, "", top)
    else top = what == "turbok.h" ? "turbok" : "own"
    if (what ~ /^turbo\// && folder == "kernels" && what != "turbo/plugin.h")
        say(FNR, "kernels see nothing of the core but turbo/plugin.h")
    else if (!may_include(folder, top))
        say(FNR, folder "/ must not include \"" what "\": net -> sched -> engine -> plugin, all -> util")
}

function check_calls(code,    word)
{
    if (match(code, /(^|[^A-Za-z0-9_.>])(sprintf|vsprintf|strcpy|strcat|atoi|atol|atof|gets|alloca|abort|exit|assert|system|popen|tmpnam|mktemp|setlocale|longjmp)[ \t]*\(/)) {
        word = substr(code, RSTART, RLENGTH)
        gsub(/[^a-z]/, "", word)
        say(FNR, word "() is banned")
    }
    if (code ~ /(^|[^A-Za-z0-9_])malloc[ \t]*\(.*[A-Za-z0-9_)] \* /)
        say(FNR, "malloc(a * b) is banned: calloc, or turbod_mul")
}

function check_function(line)
{
    if (line == "{" && !in_function) {
        in_function = FNR
        name = previous
        sub(/\(.*/, "", name)
        sub(/.*[ *]/, "", name)
    } else if (line == "}" && in_function) {
        if (over(name, FNR - in_function - 1, 80, in_function))
            say(in_function, name " has " FNR - in_function - 1 " lines; 80 are the most")
        in_function = 0
    }
    if (line ~ /^[A-Za-z_].*\(/) previous = line
}

BEGIN {
    allowed["util"] = "util"
    allowed["conf"] = "util conf"
    allowed["media"] = "util conf media"
    allowed["weights"] = "util weights turbok"
    allowed["lua"] = "util lua sched"
    allowed["chat"] = "util weights lua media chat"
    allowed["plugin"] = "util weights plugin turbok"
    allowed["plan"] = "util weights plugin turbok plan"
    allowed["sched"] = "util weights plugin turbok media sched engine conf"
    allowed["engine"] = "util weights plugin turbok media plan sched engine conf chat lua"
    allowed["net"] = "util weights plugin turbok media plan sched engine conf chat lua net own"
    allowed["daemon"] = "util weights plugin turbok media plan sched engine conf chat lua net daemon own"
    allowed["cli"] = "util weights plugin turbok media plan sched engine conf chat lua net daemon cli own"
    allowed["kernels"] = "own turbok cpu nn kv simd cuda"
    allowed["plugins"] = "own"
    while ((getline row < ceil) > 0) {
        if (row ~ /^#/ || row ~ /^[ \t]*$/) continue
        split(row, f, " ")
        ceiling[f[1] " " f[2]] = f[3]
    }
}

FNR == 1 { end_file(); start_file() }

{
    lines = FNR
    if ($0 ~ /[ \t]$/) say(FNR, "blanks at the end of the line")
    if (is_source && $0 ~ /\t/) say(FNR, "a tab")
    if (path !~ /checksrc/ && $0 ~ /(^|[^A-Za-z_])(TODO|FIXME|XXX|HACK)([^A-Za-z_]|$)/)
        say(FNR, "an unfinished mark")
    if (product && path ~ /^core\// &&
        tolower($0) ~ /internlm|llama|qwen|mistral|mixtral|llava|gemma|deepseek|chatglm|baichuan/)
        say(FNR, "the name of a model; the core knows none")
    if (is_c) {
        code = code_of($0)
        if (product) { check_include($0); check_calls(code) }
        check_function($0)
    }
}

END {
    end_file()
    for (key in ceiling)
        if (!(key in used)) {
            printf "%s: no such file or function any more: %s\n", ceil, key
            found = 1
        }
    exit found
}
