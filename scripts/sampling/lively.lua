-- For stories: no phrase comes back (DRY), the most expected word is left out now and then (XTC), and what is
-- unlikely beside the best is never taken (min_p). A chain alone; the order in which its steps are written is
-- the order in which they run.
turbo.policy(turbo.chain()
    :dry { multiplier = 0.8, base = 1.75, allowed_length = 2, breakers = turbo.tokens.of("\n.,:\"") }
    :min_p(0.05)
    :temperature(0.9)
    :xtc { threshold = 0.1, probability = 0.5 })
