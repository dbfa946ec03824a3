#!/bin/sh
# kernels/cuda/ptxas.sh: what ptxas says of the kernels, from kernels/cuda/ptxas.txt of the build tree.
#   ptxas.sh          fails when a hot kernel keeps registers in memory beyond what ptxas.allow grants it
#   ptxas.sh --table  registers of the hot kernels on sm_90 as a table (doc/cuda-registers.md)
src=${srcdir:-$(cd "$(dirname "$0")/../.." && pwd)}
report=${top_builddir:-.}/kernels/cuda/ptxas.txt
[ -s "$report" ] || { echo "SKIP: $report is empty: this build has no nvcc"; exit 77; }
awk -v allow="$src/kernels/cuda/ptxas.allow" -v table="$1" '
BEGIN {
    while ((getline line < allow) > 0)
        if (split(line, f, " ") >= 2 && line !~ /^#/) may[f[1]] = f[2]
}
/Compiling entry function/ {
    split($0, q, "\047"); name = q[2]; arch = q[4]
    hot = name ~ /^(gemv[0-9]|gemv_gated|gemm_wide|decode|brief|turned|prefill|tower|w8a8_|w[48]_(stream2?|digits2?|single2?|gemv|gemv2|gated|gemm16|gemm64|wide[0-9]+[grsx]?|tallr?)_)/
    seen += hot
}
/bytes spill stores/ && hot {
    spilled = $5 > $9 ? $5 : $9
    if (spilled > may[name] + 0) {
        printf "%s for %s: %d bytes of registers in memory, %d are allowed\n", name, arch, spilled, may[name]
        bad = 1
    }
}
/Used [0-9]+ registers/ && hot && arch ~ /^sm_90a?$/ {
    for (i = 1; i < NF; i++) if ($i == "Used") regs = $(i + 1)
    smem = 0
    for (i = 3; i <= NF; i++) if ($i ~ /^smem/) smem = $(i - 2)
    base = name; sub(/_b?f16$/, "", base)
    if (!(base in order)) { order[base] = ++n; names[n] = base }
    if (name ~ /_bf16$/) b[base] = regs; else h[base] = regs
    s[base] = smem; sp[base] = spilled > sp[base] ? spilled : sp[base]
}
END {
    if (table) {
        print "| kernel | registers bf16 | f16 | static shared bytes | spilled bytes |\n|---|---|---|---|---|"
        for (i = 1; i <= n; i++) printf "| %s | %d | %d | %d | %d |\n", names[i], b[names[i]], h[names[i]], s[names[i]], sp[names[i]]
        exit 0
    }
    if (!seen) { print "no hot kernel in the report: the names have changed"; exit 1 }
    printf "%d hot kernels looked at\n", seen
    exit bad
}' "$report"
