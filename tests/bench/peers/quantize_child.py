#!/usr/bin/env python3
"""One GGUF file into another type with llama.cpp's own quantiser: quantize_child.py IN OUT TYPE THREADS. All
matrices get the type, the head and the table of embeddings too, so that both engines read equal bits."""
import sys

import llama_cpp as L

TYPES = {"q8_0": 7, "q4_0": 2, "q4_k": 14}  # enum llama_ftype: MOSTLY_Q8_0, MOSTLY_Q4_0, MOSTLY_Q4_K_S


def main():
    src, dst, kind, threads = sys.argv[1:5]
    p = L.llama_model_quantize_default_params()
    p.ftype = TYPES[kind]
    p.nthread = int(threads)
    p.pure = True
    if L.llama_model_quantize(src.encode(), dst.encode(), p):
        sys.exit("llama.cpp cannot quantise " + src)


main()
