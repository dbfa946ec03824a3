#!/bin/sh
# Tokenizers out of GGUF files against those of the folders they were converted from, on real text.
set -eu
data="${TURBO_SHARED:-}/data"
if [ ! -r "$data/tokenizers/qwen2/vocab.json" ]; then
    echo "SKIP: no shared test data; set TURBO_SHARED to its folder"
    exit 77
fi
python3 -c 'import numpy' 2> /dev/null || { echo "SKIP: python3 with numpy is not installed"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
make="python3 $srcdir/tests/golden/gguf/make.py"
for f in wikitext-2-raw/wiki.test.raw tinyshakespeare/input.txt cs336/german.txt; do
    awk 'NR % 20 == 1' "$data/text/$f"
done > "$tmp/text"
awk 'NR % 7 == 1' "$data/tokenizers/test-vectors/sentencepiece/wagahaiwa_nekodearu.txt" >> "$tmp/text"
# Marks of chats, digits, blanks, code, contractions in both cases.
printf '%s\n' '<|im_start|>user 1234567 <|im_end|></s><s> it'"'"'S  WE'"'"'LL ... x' \
    '  if (a  ==  b) { return "<0x0A>"; }   ' '<|endoftext|><|begin_of_text|><unk>▁a ▁ b' >> "$tmp/text"

printf '\tx\t\ty = 1;\r\n\n\n' >> "$tmp/text"

compare() { # FOLDER PRE
    $make tokenizer "$1" "$tmp/t.gguf" "$2"
    echo "$(basename "$1") ($2): $("$top_builddir/tests/model/gguf_tokens" "$1" "$tmp/t.gguf" "$tmp/text")"
}

t=$data/tokenizers
mkdir "$tmp/internlm2" "$tmp/mistral" "$tmp/chat"
cp "$t/internlm2/tokenizer.model" "$tmp/internlm2"
cp "$t/mistral/tokenizer.model.v1" "$tmp/mistral/tokenizer.model"
for name in internlm2 mistral; do
    echo '{"unk_token": "<unk>"}' > "$tmp/$name/tokenizer_config.json"
    compare "$tmp/$name" spm
done
compare "$t/llama2" spm
cp "$t/internlm2/tokenizer.model" "$data/models/hf-configs/internlm2-chat-7b/tokenizer_config.json" "$tmp/chat"
compare "$tmp/chat" spm
compare "$t/gpt2" gpt-2
compare "$t/phi-2" phi-2
compare "$t/qwen2" qwen2
$make tiktoken "$t/llama3/tokenizer.model" "$tmp/llama3"
compare "$tmp/llama3" llama-bpe
