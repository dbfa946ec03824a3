#!/usr/bin/env python3
"""Makes templates.json: conversations as the published chat templates render them, by jinja2 with the
settings of transformers (not run by `make check`).

    templates.py SHARED_DIR > templates.json
    templates.py SHARED_DIR hashes      prints the fingerprints of all templates that are rendered

A row has the text, or the words of raise_exception where the template refuses. The date of the day is
"05 Mar 2024" for templates that ask for it. For some rows the ids of the whole text, by the tokenizers
library, are there too: special tokens of the text count, nothing is added.
"""
import hashlib
import json
import sys

import tokenizers
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHAT = "data/text/chat-templates/"
CONFIGS = "data/models/hf-configs/"
TOKENIZERS = "data/tokenizers/"
DATE = "05 Mar 2024"

# Not in the shared data: published in tokenizer_config.json of Llama-2-*-chat-hf, Meta-Llama-3-*-Instruct
# and Qwen2-*-Instruct.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}"
    "{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0)"
    " %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif"
    " %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message +"
    " '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif "
    "message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}")
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

S, U, A, T = "system", "user", "assistant", "tool"
DIALOGUES = [
    [(U, "Hi")],
    [(U, "")],
    [(S, "You are brief."), (U, "What is 2+2?")],
    [(S, ""), (U, "Empty system text.")],
    [(S, "  spaced \n"), (U, "  two before, two after  ")],
    [(U, "Hi"), (A, "Hello! How can I help?"), (U, "Tell me a joke.")],
    [(S, "Be kind."), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")],
    [(U, "\n\nleading newlines"), (A, "  trailing newlines\n\n")],
    [(U, "\u4f60\u597d\uff0c\u8bf7\u4ecb\u7ecd\u4e00\u4e0b\u4f60\u81ea\u5df1\u3002")],
    [(U, "emoji \U0001f600, accents \u00e9\u00fc\u00df, wide blank\u3000"), (A, "\u00a0ok\u2003")],
    [(U, "tabs\tand\r\nline ends\rof all kinds\x1c")],
    [(U, "int main(void)\n{\n    return 0;\n}\n")],
    [(U, "one"), (U, "two")],
    [(A, "the assistant begins"), (U, "x")],
    [(S, "first"), (S, "second"), (U, "x")],
    [(U, "call it"), (A, "calling"), (T, "{\"t\": \"21\u00b0\"}\n")],
    [(U, "x"), (A, "y"), (T, "one"), (T, "two"), (U, "z")],
    [(S, "only a system text")],
]

# script, template (file, or file:key), bos, eos, tokenizer for ids, content as a list of parts
ROWS = [
    ("llama2", LLAMA2, "<s>", "</s>", CONFIGS + "llava-1.5-7b-hf-tokenizer/tokenizer.json"),
    ("llama3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", None),
    ("llama3.1", CHAT + "meta-llama-Llama-3.1-8B-Instruct.jinja", "<|begin_of_text|>", "<|eot_id|>", None),
    ("llama3.2", CHAT + "meta-llama-Llama-3.2-3B-Instruct.jinja", "<|begin_of_text|>", "<|eot_id|>", None),
    ("mistral-v1", CONFIGS + "mistral-7b-instruct-v0.2/tokenizer_config.json", "<s>", "</s>",
     CONFIGS + "llava-1.5-7b-hf-tokenizer/tokenizer.json"),
    ("mistral-v3", TOKENIZERS + "mistral-7b-v0.3-hf/tokenizer_config.json", "<s>", "</s>",
     TOKENIZERS + "mistral-7b-v0.3-hf/tokenizer.json"),
    ("mistral-nemo", CHAT + "mistralai-Mistral-Nemo-Instruct-2407.jinja", "<s>", "</s>", None),
    ("qwen2", QWEN2, None, "<|im_end|>", None),
    ("qwen2-answer", CONFIGS + "qwen2-1.5b-instruct/tokenizer_config.json", None, "<|im_end|>", None),
    ("qwen2.5", CHAT + "Qwen-Qwen2.5-7B-Instruct.jinja", None, "<|im_end|>", None),
    ("phi3", TOKENIZERS + "phi-3-mini/tokenizer_config.json", "<s>", "<|endoftext|>",
     TOKENIZERS + "phi-3-mini/tokenizer.json"),
    ("phi3.5", CHAT + "microsoft-Phi-3.5-mini-instruct.jinja", "<s>", "<|endoftext|>",
     TOKENIZERS + "phi-3-mini/tokenizer.json"),
    ("gemma2", CHAT + "google-gemma-2-2b-it.jinja", "<bos>", "<eos>", None),
    ("llava-1.5", CONFIGS + "llava-1.5-7b-hf/chat_template.jinja", "<s>", "</s>",
     CONFIGS + "llava-1.5-7b-hf-tokenizer/tokenizer.json"),
    ("internlm2", CONFIGS + "internlm2-chat-7b/tokenizer_config.json", "<s>", "</s>", None),
]


class Generation(Extension):
    """{% generation %} marks what the assistant says; it writes nothing of its own."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def source(shared, where):
    if "{" in where:
        return where
    with open(shared + "/" + where, encoding="utf-8", newline="") as f:
        text = f.read()
    return json.loads(text)["chat_template"] if where.endswith(".json") else text


def render(text, messages, generate, bos, eos):
    def refuse(message):
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: DATE
    names = {"bos_token": bos, "eos_token": eos}
    return env.from_string(text).render(messages=messages, add_generation_prompt=generate,
                                        **{k: v for k, v in names.items() if v is not None})


def main():
    shared = sys.argv[1]
    if sys.argv[2:] == ["hashes"]:
        for script, where, *_ in ROWS:
            text = source(shared, where)
            # As JSON files hold them, the newlines of a literal may be escapes of Jinja instead.
            for form in dict.fromkeys([text] + [text.replace("\n", "\\n"), text.replace("\\n", "\n")] *
                                      ("{" in where)):
                print(hashlib.sha256(form.encode()).hexdigest(), script)
        return
    out = []
    for script, where, bos, eos, tok in ROWS:
        text = source(shared, where)
        coder = tokenizers.Tokenizer.from_file(shared + "/" + tok) if tok else None
        for dialogue in DIALOGUES:
            # Results of tools are messages of the environment by the model's chat format, which its template
            # does not know.
            if script == "internlm2" and any(r == T for r, _ in dialogue):
                continue
            for generate in (False, True):
                messages = [{"role": r, "content": c} for r, c in dialogue]
                parts = [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in dialogue]
                row = {"script": script, "messages": messages, "generate": generate}
                try:
                    prompt = render(text, parts if script == "llava-1.5" else messages, generate, bos, eos)
                    # LLaVA's processor lets the tokenizer write <s>.
                    row["prompt"] = ("<s>" if script == "llava-1.5" else "") + prompt
                    if coder:
                        row["tokenizer"] = tok
                        row["ids"] = coder.encode(row["prompt"], add_special_tokens=False).ids
                except TemplateError as e:
                    row["refused"] = e.message
                out.append(json.dumps(row))
    print("[\n" + ",\n".join(out) + "\n]")


if __name__ == "__main__":
    main()
