#!/usr/bin/env python3
"""Greedy answers of the demo model, computed by transformers' LlamaForCausalLM: the test's oracle.

    golden.py MODEL_DIR OUT.json

wqkv is unpacked into q, k and v; the bf16 weights are widened to fp32 and everything is computed in
fp32. A prompt is kept only when, along its whole answer, the best logit leads the second by MARGIN: the
order of additions then cannot change a token. The test runs with kv_dtype = f32 for the same reason.
"""
import json
import os
import sys

import sentencepiece as spm
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

MARGIN, WANT = 0.03, 20
CHATS = [["What is turbod?"], ["what is a KV cache"], ["How do I start the server?"], ["Explain W4A16."], ["Tell me a story about a fox."],
         ["hello"], ["Who are you?"], ["What is temperature?"], ["你好"], ["什么是量化？"], ["What is the opposite of hot?"],
         ["My name is Ada.", "What is my name?"], ["count from 1 to 10"], ["Does turbod need Python?"], ["What is InternLM2?"],
         ["What does TTFT mean?"], ["how does continuous batching work"], ["Can you explain GQA?"], ["怎么启动服务器？"],
         ["What is 3 plus 4?"], ["What is the capital of France?"], ["Thank you!"], ["Which port does turbod use?"], ["what is prefill", "and what is decode?"],
         ["What day comes after Monday?"], ["Tell me a joke"], ["How do I write a plugin?"], ["讲一个关于小猫的故事。"], ["What is a chat template?"],
         ["What colour is the sky?"], ["How can I chat in the terminal?"], ["Goodbye"], ["What is paged attention?"]]


def load(folder):
    c = json.load(open(os.path.join(folder, "config.json")))
    w = {k: v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()}
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    d, g = c["hidden_size"] // heads, heads // kv
    out = {"model.embed_tokens.weight": w["model.tok_embeddings.weight"], "model.norm.weight": w["model.norm.weight"],
           "lm_head.weight": w.get("output.weight", w["model.tok_embeddings.weight"])}
    for i in range(c["num_hidden_layers"]):
        a, b = f"model.layers.{i}.", f"model.layers.{i}."
        qkv = w[a + "attention.wqkv.weight"].view(kv, g + 2, d, -1)
        out[b + "self_attn.q_proj.weight"] = qkv[:, :g].reshape(heads * d, -1)
        out[b + "self_attn.k_proj.weight"] = qkv[:, g].reshape(kv * d, -1)
        out[b + "self_attn.v_proj.weight"] = qkv[:, g + 1].reshape(kv * d, -1)
        out[b + "self_attn.o_proj.weight"] = w[a + "attention.wo.weight"]
        for x, y in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            out[b + f"mlp.{y}.weight"] = w[a + f"feed_forward.{x}.weight"]
        out[b + "input_layernorm.weight"] = w[a + "attention_norm.weight"]
        out[b + "post_attention_layernorm.weight"] = w[a + "ffn_norm.weight"]
    cfg = LlamaConfig(vocab_size=c["vocab_size"], hidden_size=c["hidden_size"], intermediate_size=c["intermediate_size"],
                      num_hidden_layers=c["num_hidden_layers"], num_attention_heads=heads, num_key_value_heads=kv,
                      max_position_embeddings=c["max_position_embeddings"], rms_norm_eps=c["rms_norm_eps"],
                      rope_theta=float(c["rope_theta"]), tie_word_embeddings=False, attention_bias=False)
    m = LlamaForCausalLM(cfg)
    missing, extra = m.load_state_dict(out, strict=False)
    assert not extra and not [k for k in missing if "rotary" not in k], (missing, extra)
    return m.float().eval(), c


@torch.no_grad()
def answer(m, prompt, stop, limit=300):
    ids, past, margin = [], None, 1e9
    cur = torch.tensor([prompt])
    while len(ids) < limit:
        o = m(cur, past_key_values=past, use_cache=True)
        past, top = o.past_key_values, o.logits[0, -1].topk(2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        t = int(top.indices[0])
        if t in stop:
            return ids, margin
        ids.append(t)
        cur = torch.tensor([[t]])
    return None, 0


def main():
    folder, out = sys.argv[1:3]
    m, c = load(folder)
    sp = spm.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
    start, end = c["vocab_size"] - 1, c["vocab_size"] - 2
    rows = []
    for chat in CHATS:
        msgs, prompt = [], [1]
        for q in chat:
            msgs.append({"role": "user", "content": q})
            prompt += [start] + sp.encode("user\n" + q) + [end] + sp.encode("\n") + [start] + sp.encode("assistant\n")
            ids, margin = answer(m, prompt, (2, end))
            if ids is None:
                break
            text = sp.decode(ids)
            if q is not chat[-1]:
                msgs.append({"role": "assistant", "content": text})
                prompt += ids + [end] + sp.encode("\n")
        print(f"{margin:.3f}", chat[-1], "->", text if ids is not None else "(does not stop)")
        if ids is not None and margin > MARGIN and len(rows) < WANT:
            rows.append({"messages": msgs, "prompt_ids": prompt, "answer_ids": ids, "answer": text})
    note = (f"Greedy answers by transformers LlamaForCausalLM, bf16 weights widened to fp32, fp32 arithmetic; smallest lead of the best logit > {MARGIN}. "
            "Made by scripts/demo-model/golden.py.")
    with open(out, "w", encoding="utf-8") as f:
        json.dump({"note": note, "prompts": rows}, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print("kept", len(rows))


if __name__ == "__main__":
    main()
