#!/usr/bin/env python3
"""Makes tests/golden/chat/internlm2.json: conversations and the ids their prompts must have.

usage: make.py TOKENIZER_FOLDER OUTPUT    (needs the sentencepiece package; not run by `make check`)

The ids are those of the reference: the whole rendered prompt is split at the special tokens, and each
text between two of them is encoded by SentencePiece in one piece. The rendering here is written from
the model's published chat format, not from the Lua script that is tested.
"""
import json
import re
import sys

import sentencepiece

SPECIAL = {"<s>": 1, "</s>": 2, "<|plugin|>": 92538, "<|interpreter|>": 92539,
           "<|action_end|>": 92540, "<|action_start|>": 92541, "<|im_end|>": 92542,
           "<|im_start|>": 92543}

CASES = [
    ([("user", "Hi")], True, False),
    ([("user", "")], True, False),
    ([("system", "You are a helpful assistant."), ("user", "What is 2+2?")], True, False),
    ([("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke.")], True, False),
    ([("user", "\n\nleading newlines"), ("assistant", "trailing newlines\n\n")], False, False),
    ([("user", "  two spaces, and two after  ")], True, False),
    ([("user", "\u4f60\u597d\uff0c\u8bf7\u4ecb\u7ecd\u4e00\u4e0b\u4f60\u81ea\u5df1\u3002")], True, False),
    ([("user", "emoji \U0001f600 and accents \u00e9\u00fc\u00df and a ligature \ufb01")], True, False),
    ([("user", "tabs\tand\r\nline ends\rof all kinds")], True, False),
    ([("user", "int main(void)\n{\n    return 0;\n}\n")], True, False),
    ([("user", "Continue"), ("assistant", "Once upon a time")], False, True),
    ([("user", "Continue"), ("assistant", "")], False, True),
    ([("user", "x" * 3000)], True, False),
    ([("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"),
      ("user", "f")], True, False),
    ([("tool", "{\"temperature\": 21}")], True, False),
    ([], True, False),
]


def render(messages, generate, keep_open):
    out = "<s>"
    for i, (role, content) in enumerate(messages):
        role = {"tool": "environment"}.get(role, role)
        out += "<|im_start|>" + role + "\n" + content
        if not (keep_open and i + 1 == len(messages)):
            out += "<|im_end|>\n"
    return out + ("<|im_start|>assistant\n" if generate else "")


def main():
    processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1] + "/tokenizer.model")
    split = re.compile("(" + "|".join(re.escape(s) for s in SPECIAL) + ")")
    rows = []
    for messages, generate, keep_open in CASES:
        prompt = render(messages, generate, keep_open)
        ids = []
        for part in split.split(prompt):
            if part in SPECIAL:
                ids.append(SPECIAL[part])
            elif part:
                ids += processor.encode(part)
        rows.append({"messages": [{"role": r, "content": c} for r, c in messages],
                     "add_generation_prompt": generate, "continue_final_message": keep_open,
                     "prompt": prompt, "ids": ids})
    with open(sys.argv[2], "w", encoding="ascii") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
