"""Token ids that every engine of a comparison is fed with: splitmix64 (Steele, Lea, Flood 2014)."""

MASK = (1 << 64) - 1


def ids(seed, n, vocab):
    out = []
    for _ in range(n):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append((z ^ (z >> 31)) % vocab)
    return out


def serve(engine, facts):
    """Answers the lines that `turbo bench turns` answers (see its --help), from a Python engine."""
    import json
    import sys
    out = sys.stdout
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        try:
            if word == "decode":
                answer = engine.decode(*map(int, rest))
            elif word == "prefill":
                answer = engine.prefill(*map(int, rest))
            elif word == "greedy":
                answer = engine.greedy(int(rest[0]), [int(x) for x in rest[1].split(",")])
            else:
                answer = {"error": "unknown command " + word}
        except Exception as e:  # the other side prints it and gives up
            answer = {"error": "%s: %s" % (type(e).__name__, e)}
        print(json.dumps(answer), file=out, flush=True)
