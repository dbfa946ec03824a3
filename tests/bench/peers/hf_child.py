#!/usr/bin/env python3
"""transformers on the CPU, measured a line of standard input at a time (the lines of `turbo bench turns`):
hf_child.py FOLDER THREADS bf16|int8. bf16 is eager; int8 is torch's dynamic quantisation of the linear layers over
float32 (fbgemm). Sequences of a batch have equal content: it does not change the speed."""
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
import transformers  # noqa: E402

import ids  # noqa: E402


class Hf:
    def __init__(self, folder, threads, kind):
        torch.set_num_threads(threads)
        t = time.monotonic()
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        if kind == "int8":
            self.model = torch.ao.quantization.quantize_dynamic(self.model, {torch.nn.Linear},
                                                                dtype=torch.qint8)
        self.load = time.monotonic() - t
        self.vocab = self.model.config.vocab_size
        self.held = None

    @torch.inference_mode()
    def run(self, tokens, cache):
        t = time.monotonic()
        out = self.model(torch.tensor(tokens), past_key_values=cache, use_cache=True,
                         logits_to_keep=1)
        return time.monotonic() - t, out.past_key_values, out.logits[:, -1].argmax(-1).tolist()

    def decode(self, batch, context, steps, seed):
        if self.held is None or self.held[0] != (batch, context, seed):
            tokens = ids.ids(seed, context, self.vocab)
            self.held = (batch, context, seed), self.run([tokens] * batch, None)[1]
        cache, t, now = self.held[1], 0, [1 + s for s in range(batch)]
        for k in range(-1, steps):
            dt, cache, now = self.run([[x] for x in now], cache)
            t += dt if k >= 0 else 0
        cache.crop(-(steps + 1))
        return {"seconds_a_step": t / steps, "steps": steps}

    def prefill(self, length, seed):
        self.held = None
        return {"seconds": self.run([ids.ids(seed, length, self.vocab)], None)[0], "cached": 0}

    def greedy(self, n, tokens):
        self.held = None
        _, cache, now = self.run([tokens], None)
        out = [now[0]]
        while len(out) < n:
            _, cache, now = self.run([[out[-1]]], cache)
            out.append(now[0])
        return {"ids": out}


def main():
    folder, threads, kind = sys.argv[1:4]
    keep = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(keep, "w")
    e = Hf(folder, int(threads), kind)
    ids.serve(e, {"engine": "transformers", "load_seconds": e.load, "vocab": e.vocab,
                  "package": transformers.__version__ + ", torch " + torch.__version__})


main()
