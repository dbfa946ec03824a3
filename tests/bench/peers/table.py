"""Figures of peers.py: ratios, what bounds them, and whether a floor or goal is reached."""
import statistics

# least (blocks a release) and goal, as peer's time / turbod's
RATIO = {
    ("decode", "bf16"): (1.0, 1.2), ("decode", "int8"): (1.0, 1.3), ("decode", "int4"): (1.0, 1.25),
    ("prefill", "bf16"): (1.5, 3.0), ("prefill", "int8"): (1.2, 1.8), ("prefill", "int4"): (1.2, 1.8),
}
READ = (0.60, 0.80)  # decode: bytes a second of what was read in the same run
PEAK = (0.40, 0.65)  # prefill: of the peak of the same instruction
BATCH = (3.0, 5.0)  # int8, batch 8: tokens a second over batch 1
LIMIT = 0.8  # of what bandwidth and peak allow together


def width(fmt):
    return "int8" if "8" in fmt else "int4" if "4" in fmt else "bf16"


def spread(values):
    return "%.2f (%.2f..%.2f)" % (statistics.median(values), min(values), max(values))


def mark(value, floor, goal):
    return "goal" if value >= goal else "floor" if value >= floor else "BELOW"


def params(c):
    """(of the layers, of the head)"""
    E, I = c["hidden_size"], c["intermediate_size"]
    D = c.get("head_dim") or E // c["num_attention_heads"]
    heads = c["num_attention_heads"] + 2 * c["num_key_value_heads"]
    layer = heads * D * E + c["num_attention_heads"] * D * E + 3 * E * I
    return layer * c["num_hidden_layers"], E * c["vocab_size"]


def is_8k(r):
    return "8k" in r["point"]


def step_bytes(r):
    """What turbod has to read for a step: matrices without the table of embeddings, keys and values."""
    linear, head = params(r["config"])
    batch, context = (8, 128) if r["point"].startswith("batch") else (1, 8192 if is_8k(r) else 512)
    weights = r["turbod"]["weight_bytes"]
    if r["format"].startswith("gguf"):
        weights *= (linear + head) / (linear + 2 * head)
    else:
        weights -= 2 * head  # the table of embeddings stays as it is
    return weights, weights + r["turbod"]["kv_bytes_a_token"] * batch * (context + r["steps"] / 2)


def prefill_flops(r, n=512):
    c = r["config"]
    linear, head = params(c)
    D = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return 2 * linear * n + 2 * head + 2.0 * c["num_attention_heads"] * D * c["num_hidden_layers"] * n * (n + 1)


def name_of(r):
    return r["peer"].split()[0]


def shares(r):
    """(what, values of the rounds, floor, goal)"""
    rows, fmt = r["rounds"], width(r["format"])
    if r["point"].startswith("prefill"):
        flops = prefill_flops(r)
        # The goal speaks of the peak of the instructions used; those on bytes are not measured here.
        goal = PEAK if fmt == "bf16" else (None, None)
        yield "of the fp32 multiply-add peak", [flops / x["turbod"] / x["fma_flops"] for x in rows], *goal
    elif r["point"].startswith("decode"):
        size = step_bytes(r)[1]
        yield "of the read bandwidth", [size / x["turbod"] / x["read_bytes_per_s"] for x in rows], *READ
    elif fmt == "bf16":  # int8 has a goal of its own, the peak for int4 is not measured here
        # no step can be faster than its bytes, nor than its multiplications
        linear, head = params(r["config"])
        work = 2.0 * 8 * (linear + head)
        yield "of what bandwidth and peak allow", [
            max(step_bytes(r)[1] / x["read_bytes_per_s"], work / x["fma_flops"]) / x["turbod"]
            for x in rows], LIMIT, LIMIT


def ratios(r):
    peer = name_of(r)
    return [x[peer] / x["turbod"] for x in r["rounds"]] if peer in r["rounds"][0] else []


def seconds(r, who):
    v = [x[who] for x in r["rounds"] if who in x]
    return statistics.median(v) if v else None


def speed(r, who):
    """Tokens a second."""
    s = seconds(r, who)
    n = 512 if r["point"].startswith("prefill") else 8 if r["point"].startswith("batch") else 1
    return "%.1f" % (n / s) if s else ""


def goal_of(r):
    return RATIO.get((r["point"].split()[0], width(r["format"]))) if name_of(r) == "llama.cpp" and not is_8k(r) else None


def line(r):
    if r["point"] == "greedy":
        return "%s, %s against %s: %d of %d greedy tokens equal; to the reference %d" % (
            r["shape"], r["format"], r["peer"], r["same"], r["of"], r["reference"])
    text = "%s, %s, %s against %s: turbod %s tokens/s, peer %s" % (
        r["shape"], r["format"], r["point"], r["peer"], speed(r, "turbod"), speed(r, name_of(r)) or "-")
    v = ratios(r)
    if v:
        text += ", ratio " + spread(v)
    for what, values, *_ in shares(r):
        text += "; %s %s" % (what, spread(values))
    return text


def derived(results):
    """Rows that compare two points: batch 8 with batch 1, 8k with 512."""
    by = {(r["shape"], r["format"], r["point"]): r for r in results
          if "rounds" in r and name_of(r) != "transformers"}
    for (shape, fmt, point), r in by.items():
        if point == "batch 8" and (shape, fmt, "decode 512") in by:
            one = by[shape, fmt, "decode 512"]
            v = 8 * seconds(one, "turbod") / seconds(r, "turbod")
            goal = BATCH if width(fmt) == "int8" else None
            yield shape, fmt, "batch 8 / batch 1, tokens a second", v, goal
        if point.startswith("decode 8k") and (shape, fmt, "decode 512, int8 KV") in by:
            short = by[shape, fmt, "decode 512, int8 KV"]
            v = seconds(short, "turbod") / seconds(r, "turbod")
            if width(fmt) == "bf16":
                yield shape, fmt, "8k / 512 with int8 KV", v, (0.60, 0.75)
            else:
                limit = step_bytes(short)[1] / step_bytes(r)[1]
                yield shape, fmt, "8k / 512 with int8 KV, of its limit %.2f" % limit, v / limit, (LIMIT, LIMIT)


def markdown(report):
    out, results = [], report["results"]
    first = next((r for r in results if "rounds" in r), None)
    if first:
        t, p = first["turbod"], first["llama"]
        read = [x["read_bytes_per_s"] * 1e-9 for r in results for x in r.get("rounds", [])]
        fma = [x["fma_flops"] * 1e-9 for r in results for x in r.get("rounds", [])]
        out.append("%s, %d threads, %s%s; turbod on %s; llama-cpp-python %s (%s). Read %s GB/s, fp32 "
                   "multiply-add %s GFLOP/s over all rounds; others used %s of the machine." % (
                       t["machine"], report["threads"], report["date"],
                       ", QUICK" if report["quick"] else "", t["device"], p["package"],
                       p["system"].replace(" | ", ", ").strip(", "), spread(read), spread(fma),
                       spread([x["foreign"] for r in results for x in r.get("rounds", [])])))
        out.append("")
    out += ["| shape | turbod | peer | point | turbod tokens/s | peer | ratio (least..most) | floor, goal | |",
            "|---|---|---|---|---|---|---|---|---|"]
    for r in results:
        if "rounds" not in r or not ratios(r):
            continue
        v, goal = ratios(r), goal_of(r)
        out.append("| %s | %s | %s | %s | %s | %s | %s | %s | %s |" % (
            r["shape"], r["format"], r["peer"], r["point"], speed(r, "turbod"), speed(r, name_of(r)), spread(v),
            "%.2f, %.2f" % goal if goal else "", mark(statistics.median(v), *goal) if goal else ""))
    out += ["", "| shape | turbod | point | share | value (least..most) | floor, goal | |",
            "|---|---|---|---|---|---|---|"]
    for r in results:
        if "rounds" not in r or name_of(r) == "transformers":
            continue
        for what, v, floor, goal in shares(r):
            out.append("| %s | %s | %s | %s | %s | %s | %s |" % (
                r["shape"], r["format"], r["point"], what, spread(v), "%.2f, %.2f" % (floor, goal) if goal else "",
                mark(statistics.median(v), floor, goal) if goal else ""))
    for shape, fmt, what, v, goal in derived(results):
        out.append("| %s | %s | %s | | %.2f | %s | %s |" % (
            shape, fmt, what, v, "%.2f, %.2f" % goal if goal else "", mark(v, *goal) if goal else ""))
    out.append("")
    for r in results:
        if r["point"] == "greedy":
            out.append("- " + line(r))
    out += ["- " + n for n in report["notes"]]
    layered = sorted({r["shape"] for r in results if ":" in r["shape"]})
    if layered:
        out.append("- `SHAPE:N` has N layers only: " + ", ".join(layered))
    return "\n".join(out)
