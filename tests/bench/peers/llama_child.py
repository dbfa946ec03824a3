#!/usr/bin/env python3
"""llama.cpp, loaded once, measured a line of standard input at a time (the lines of `turbo bench turns`).

    llama_child.py MODEL.gguf THREADS SEQS TOKENS_A_SEQ KV_TYPE [STATE]

llama_cpp's own C interface is called, nothing of its Python layer: a step's time is that of llama_decode and
llama_synchronize alone; choosing the next token is not in it. STATE: keys and values of a long prompt are kept
there, because only the time behind them is of interest.
"""
import ctypes
import os
import sys
import time

import llama_cpp as L
import numpy as np

import ids

KV = {"f16": 1, "q8_0": 8, "bf16": 30, "f32": 0}


class Llama:
    def __init__(self, path, threads, seqs, tokens, kv, state=None):
        self.state, self.seqs = state, seqs
        L.llama_backend_init()
        m = L.llama_model_default_params()
        m.n_gpu_layers = 0
        t = time.monotonic()
        self.model = L.llama_model_load_from_file(path.encode(), m)
        self.load = time.monotonic() - t
        if not self.model:
            sys.exit("llama.cpp does not load " + path)
        c = L.llama_context_default_params()
        c.n_ctx = seqs * tokens
        c.n_seq_max = seqs
        c.n_batch = 2048
        c.n_ubatch = 512
        c.n_threads = c.n_threads_batch = threads
        c.type_k = c.type_v = KV[kv]
        c.kv_unified = False
        c.no_perf = True
        self.ctx = L.llama_init_from_model(self.model, c)
        if not self.ctx:
            sys.exit("llama.cpp makes no context")
        self.mem = L.llama_get_memory(self.ctx)
        self.vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.batch = L.llama_batch_init(2048, 0, 1)
        self.held = None

    def run(self, rows):
        """rows: (token, position, sequence, wants logits). Seconds."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, pos, seq, logits) in enumerate(rows):
            b.token[i] = token
            b.pos[i] = pos
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = seq
            b.logits[i] = logits
        t = time.monotonic()
        rc = L.llama_decode(self.ctx, b)
        L.llama_synchronize(self.ctx)
        t = time.monotonic() - t
        if rc:
            raise RuntimeError("llama_decode: %d" % rc)
        return t

    def best(self, i):
        p = L.llama_get_logits_ith(self.ctx, i)
        return int(np.ctypeslib.as_array(p, (self.vocab,)).argmax())

    def fill(self, tokens, seq=0):
        """Seconds of all parts."""
        t, last = 0, len(tokens) - 1
        for at in range(0, len(tokens), 2048):
            t += self.run([(x, at + i, seq, at + i == last)
                           for i, x in enumerate(tokens[at:at + 2048])])
        return t

    def prepare(self, batch, context, seed):
        """Every sequence gets keys and values of its own; what they hold does not change the speed."""
        if self.held == (batch, context, seed):
            return
        L.llama_memory_clear(self.mem, True)
        tokens = ids.ids(seed, context, self.vocab)
        if self.state and os.path.exists(self.state):
            got = (L.llama_token * context)()
            n = ctypes.c_size_t()
            if not L.llama_state_seq_load_file(self.ctx, self.state.encode(), 0, got, context,
                                               ctypes.byref(n)) or n.value != context:
                raise RuntimeError("the state in %s does not fit" % self.state)
        else:
            self.fill(tokens)
            if self.state:
                L.llama_state_seq_save_file(self.ctx, self.state.encode(), 0,
                                            (L.llama_token * context)(*tokens), context)
        for s in range(1, batch):
            L.llama_memory_seq_cp(self.mem, 0, s, -1, -1)
        self.held = (batch, context, seed)

    def decode(self, batch, context, steps, seed):
        self.prepare(batch, context, seed)
        now = [1 + s for s in range(batch)]
        t = 0
        for k in range(-1, steps):
            dt = self.run([(now[s], context + 1 + k, s, True) for s in range(batch)])
            t += dt if k >= 0 else 0  # the first one warms up
            now = [self.best(s) for s in range(batch)]
        for s in range(batch):
            L.llama_memory_seq_rm(self.mem, s, context, -1)
        return {"seconds_a_step": t / steps, "steps": steps}

    def prefill(self, length, seed):
        L.llama_memory_clear(self.mem, True)
        self.held = None
        return {"seconds": self.fill(ids.ids(seed, length, self.vocab)), "cached": 0}

    def greedy(self, n, tokens):
        L.llama_memory_clear(self.mem, True)
        self.held = None
        self.fill(tokens)
        out = [self.best(len(tokens) - 1 if len(tokens) <= 2048 else -1)]
        while len(out) < n:
            self.run([(out[-1], len(tokens) + len(out) - 1, 0, True)])
            out.append(self.best(0))
        return {"ids": out}


def main():
    path, threads, seqs, tokens, kv = sys.argv[1:6]
    # standard output is the protocol's
    keep = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(keep, "w")
    e = Llama(path, int(threads), int(seqs), int(tokens), kv, *sys.argv[6:7])
    ids.serve(e, {"engine": "llama.cpp", "load_seconds": e.load, "vocab": e.vocab,
                  "package": L.__version__, "weight_bytes": L.llama_model_size(e.model),
                  "system": L.llama_print_system_info().decode().strip()})


main()
