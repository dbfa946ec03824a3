#!/usr/bin/env python3
"""Trains the demo model's SentencePiece BPE tokenizer and writes it in InternLM2's form.

    tokenizer.py CORPUS.jsonl OUT_DIR [--vocab N]

Identity normaliser, no dummy prefix, byte fallback; the last six pieces are [UNUSED_TOKEN_141..146],
which tokenizer_config.json renames to the special tokens, as the published InternLM2 files do.
Needs the packages sentencepiece and protobuf.
"""
import argparse
import json
import os

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb

SPECIALS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
            "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def texts(path, limit=400000):
    with open(path, encoding="utf-8") as f:
        n = 0
        for line in f:
            for m in json.loads(line):
                yield m["content"]
                n += 1
                if n >= limit:
                    return
    # roles stand in every prompt
    for role in ("system", "user", "assistant", "environment"):
        yield role + "\n"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("corpus")
    p.add_argument("out")
    p.add_argument("--vocab", type=int, default=2800)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    prefix = os.path.join(args.out, "tokenizer")
    spm.SentencePieceTrainer.train(
        sentence_iterator=texts(args.corpus), model_prefix=prefix, model_type="bpe",
        vocab_size=args.vocab - len(SPECIALS), byte_fallback=True, character_coverage=0.9999,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, num_threads=2, max_sentence_length=16384,
        user_defined_symbols=["\n"], unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    m = pb.ModelProto()
    with open(prefix + ".model", "rb") as f:
        m.ParseFromString(f.read())
    for i in range(141, 147):
        m.pieces.add(piece=f"[UNUSED_TOKEN_{i}]", score=0.0, type=pb.ModelProto.SentencePiece.USER_DEFINED)
    m.trainer_spec.vocab_size = len(m.pieces)
    with open(prefix + ".model", "wb") as f:
        f.write(m.SerializeToString())
    os.remove(prefix + ".vocab")
    n = len(m.pieces)

    def added(content):
        return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}

    names = {0: "<unk>", 1: "<s>", 2: "</s>"} | {n - 6 + i: s for i, s in enumerate(SPECIALS)}
    config = {
        "add_bos_token": True, "add_eos_token": False,
        "added_tokens_decoder": {str(i): added(s) for i, s in names.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>"],
        "bos_token": "<s>", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
        "decode_with_prefix_space": False, "eos_token": "</s>", "model_max_length": 1024,
        "pad_token": "</s>", "tokenizer_class": "InternLM2Tokenizer", "unk_token": "<unk>",
    }
    with open(os.path.join(args.out, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    print("pieces:", n)


if __name__ == "__main__":
    main()
