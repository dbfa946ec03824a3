#!/usr/bin/env python3
"""A model folder of random bf16 weights in the Llama layout, for measurements: needs numpy, uses all cores.

Matrices are normal with deviation 0.02, norms are 1. Numbers are dealt from one block of 2^25 of them that each tensor
enters at another place, so that making 15 GB takes seconds; what is measured does not depend on their values.

    random_model.py SHAPE FOLDER [--layers N]
"""
import argparse
import concurrent.futures
import json
import os
import struct

VOCAB = 92544
SHAPES = {  # layers, width, heads, KV heads, width of the MLP: InternLM2's
    "1.8b": (24, 2048, 16, 8, 8192),
    "7b": (32, 4096, 32, 8, 14336),
    "20b": (48, 6144, 48, 8, 16384),
    "tiny": (2, 256, 4, 2, 512),  # to try the programs with
}
PIECE = 1 << 24  # numbers that a thread writes at a time


def tensors(shape, layers=0):
    some, width, heads, kv, mlp = SHAPES[shape]
    head = width // heads
    yield "model.embed_tokens.weight", (VOCAB, width)
    for n in range(layers or some):
        p = "model.layers.%d." % n
        yield p + "input_layernorm.weight", (width,)
        yield p + "self_attn.q_proj.weight", (heads * head, width)
        yield p + "self_attn.k_proj.weight", (kv * head, width)
        yield p + "self_attn.v_proj.weight", (kv * head, width)
        yield p + "self_attn.o_proj.weight", (width, heads * head)
        yield p + "post_attention_layernorm.weight", (width,)
        yield p + "mlp.gate_proj.weight", (mlp, width)
        yield p + "mlp.up_proj.weight", (mlp, width)
        yield p + "mlp.down_proj.weight", (width, mlp)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (VOCAB, width)


def config(shape, layers=0):
    some, width, heads, kv, mlp = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": mlp,
        "num_hidden_layers": layers or some, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": VOCAB, "head_dim": width // heads, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2}


def block(np, n):
    """n numbers of bf16, as uint16."""
    def some(i):
        f = np.random.default_rng(i).standard_normal(n // 32, dtype=np.float32) * np.float32(0.02)
        return ((f.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(some, range(32))))


def write_model(shape, folder, layers=0):
    import numpy as np

    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config(shape, layers), f)
    header, at, jobs = {}, 0, []
    for k, (name, dims) in enumerate(tensors(shape, layers)):
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + 2 * n]}
        jobs += [(at + 2 * i, min(PIECE, n - i), len(dims) > 1 and (k * 7919 * 64 + i // PIECE * 104729))
                 for i in range(0, n, PIECE)]
        at += 2 * n
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    numbers = block(np, 1 << 25)
    ones = np.full(1 << 16, 0x3f80, dtype=np.uint16)
    fd = os.open(os.path.join(folder, "model.safetensors"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.pwrite(fd, struct.pack("<Q", len(head)) + head, 0)

        def write(job):
            to, n, begin = job
            begin = begin % (len(numbers) - PIECE) if begin is not False else 0
            view = memoryview((ones if job[2] is False else numbers)[begin:begin + n]).cast("B")
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], 8 + len(head) + to + done)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(write, jobs))
    finally:
        os.close(fd)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("shape", choices=sorted(SHAPES))
    p.add_argument("folder")
    p.add_argument("--layers", type=int, default=0)
    a = p.parse_args()
    os.makedirs(a.folder, exist_ok=True)
    write_model(a.shape, a.folder, a.layers)


if __name__ == "__main__":
    main()
