# tests/abi/fields.awk: reads turbo/plugin.h and writes STRUCT(t) and FIELD(t, f, "declaration") lines for
# each struct that it defines. Knows the header's layout: one declaration a line or over several lines up to ';',
# a struct ends with "} name;".
{ gsub(/\/\*([^*]|\*+[^*\/])*\*+\//, "") }            # comments on one line
/\/\*/ { sub(/\/\*.*/, ""); keep = $0; comment = 1; if (keep ~ /[^ \t]/) line = line keep; next }
comment { if (/\*\//) { sub(/.*\*\//, ""); comment = 0 } else next }
/^typedef struct [a-z_]+ \{/ { inside = 1; n = 0; line = ""; next }
inside && /^\} [a-z_]+;/ {
    name = $2; sub(/;/, "", name)
    print "STRUCT(" name ")"
    for (i = 1; i <= n; i++) print "FIELD(" name ", " field[i] ", \"" text[i] "\")"
    inside = 0; next
}
inside {
    line = line " " $0
    while ((at = index(line, ";")) > 0) {
        decl = substr(line, 1, at - 1); line = substr(line, at + 1)
        whole = decl; gsub(/[ \t]+/, " ", whole); sub(/^ /, "", whole); text[n + 1] = whole
        if (decl ~ /\(\*[ ]*[a-z_]+\)[ ]*\(/) {           # pointer to function
            match(decl, /\(\*[a-z_]+\)/)
            field[++n] = substr(decl, RSTART + 2, RLENGTH - 3)
        } else {
            gsub(/\[[^]]*\]/, "", decl); gsub(/[ \t]+$/, "", decl)
            sub(/.*[ *]/, "", decl); field[++n] = decl
        }
    }
}
