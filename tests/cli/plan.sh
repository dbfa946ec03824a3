#!/bin/sh
# tests/cli/plan.sh: turbo plan: figures that are known, from config.json alone; what turbod then takes;
# refusals; the picture.
. "${srcdir:-.}/tests/cli/common.sh"
command -v python3 > /dev/null || { echo "SKIP: python3 is not installed"; exit 77; }
b18=$src/tests/golden/plan/internlm2-1_8b
b20=$src/tests/golden/plan/internlm2-20b

# The lesson's figures: 16 sequences of 512 + 32 tokens on 20B, and 175B on an RTX 4090
run 0 'KV +1\.711 GB \(1711276032 bytes\)' "$turbo" plan "$b20" --device h200 --batch 16 --in 512 --out 32
grep -q '10\.27 GB (10267656192 bytes) if each of the 48 heads had its own' "$tmp/out" ||
    { echo "FAILED: full heads"; cat "$tmp/out"; failures=$((failures + 1)); }
grep -q 'as measured on one' "$tmp/out" || { echo "FAILED: no word of how it is known"; failures=$((failures + 1)); }
run 0 '; 40\.6 GFLOP counting one product' "$turbo" plan "$b20" --device h200 --params 20e9 --in 992
run 0 '350 GFLOP, 350 GB: 4\.24 ms of computing, 347 ms of reading: bound by memory' \
    "$turbo" plan --params 175e9 --device rtx4090
run 0 'does not fit into the 24\.0 GB' "$turbo" plan --params 175e9 --device rtx4090
run 0 'from batch 82 on' "$turbo" plan --params 175e9 --device rtx4090
run 0 '350 GFLOP, 93\.0 GB: 4\.24 ms of computing, 92\.2 ms of reading' \
    "$turbo" plan --params 175e9 --device rtx4090 --bits 4.25

# what the matrices are, as stored and as they become
run 0 '^matrices     122 f16$' "$turbo" plan "$b18"
run 0 '^matrices     1 f16, 1 f16 that become int8, 120 f16 that become int4$' "$turbo" plan "$b18" --quantize int4

# other families, by their published numbers of parameters: matrices of several tensors, biases, a tied head
mkdir "$tmp/7b" "$tmp/05b"
cat > "$tmp/7b/config.json" << 'EOT'
{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":32,
 "num_key_value_heads":32,"intermediate_size":11008,"vocab_size":32000,"max_position_embeddings":4096,
 "rms_norm_eps":1e-5,"torch_dtype":"float16"}
EOT
cat > "$tmp/05b/config.json" << 'EOT'
{"architectures":["Qwen2ForCausalLM"],"hidden_size":896,"num_hidden_layers":24,"num_attention_heads":14,
 "num_key_value_heads":2,"intermediate_size":4864,"vocab_size":151936,"max_position_embeddings":32768,
 "rms_norm_eps":1e-6,"rope_theta":1000000,"tie_word_embeddings":true,"torch_dtype":"bfloat16"}
EOT
run 0 '"params":6738415616,.*"kv_token_bytes":524288,"kv_block_bytes":33554432,' \
    "$turbo" plan "$tmp/7b" --device a100-80g --json
run 0 '"params":494032768,.*"kv_token_bytes":12288,' "$turbo" plan "$tmp/05b" --device l4 --json

# an index without the files it names: its size is compared; one file of two is no more than none
index() {
    echo '{"metadata":{"total_size":'$1'},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}' \
        > "$tmp/7b/model.safetensors.index.json"
}
for quantize in "" int4; do
    index 13476831232
    run 0 'they make as many bytes as model.safetensors.index.json says' \
        "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize"
    run 0 '"params":6738415616,.*"exact":true' "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize" --json
    index 26953662464
    run 0 'estimate: they make 13476831232 bytes, model.safetensors.index.json says 26953662464' \
        "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize"
    run 0 '"exact":false' "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize" --json
    cp "$model/model.safetensors" "$tmp/7b/one.safetensors"
    index 13476839424
    run 0 'says 8192 bytes more, in 2 tensors that are not loaded' "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize"
    run 0 '"exact":true' "$turbo" plan "$tmp/7b" --device h200 --quantize "$quantize" --json
done
: > "$tmp/7b/two.safetensors"
mv "$tmp/7b/one.safetensors" "$tmp/7b/kept"
run 0 '"exact":true' "$turbo" plan "$tmp/7b" --device h200 --json # what is missing counts, whatever stands behind it
mv "$tmp/7b/two.safetensors" "$tmp/7b/one.safetensors"
run 0 '"exact":true' "$turbo" plan "$tmp/7b" --device h200 --json
mv "$tmp/7b/kept" "$tmp/7b/one.safetensors"
run 64 'turbo: --json takes no value' "$turbo" plan "$tmp/7b" --json=1
run 64 'turbo plan takes cpu or a card by its name' "$turbo" plan "$tmp/7b" --device gpu
run 66 'index.json names two.safetensors, which is not in the folder: download it' "$turbod" --model "$tmp/7b" -t

# 1.8B: 98,304 bytes a token, 6 MiB a block; used = B + r F within one block
run 0 'KV +98304 bytes a token, 6291456 a block of 64 tokens' "$turbo" plan "$b18" --memory 8GiB
for r in 0.8 0.5 0.4 0.01; do
    "$turbo" plan "$b18" --memory 8182MiB --cache-max-entry-count $r --json > "$tmp/$r.json" || failures=$((failures + 1))
    python3 - "$tmp/$r.json" $r << 'EOT' || { echo "FAILED: law at $r"; failures=$((failures + 1)); }
import json, sys
p, r = json.load(open(sys.argv[1])), float(sys.argv[2])
b = p["bytes"]
fixed = sum(v for k, v in b.items() if not k.startswith("kv"))
law = fixed + r * (8182 * 2**20 - fixed)
assert p["exact"] and p["fits"] and p["free_bytes"] == 8182 * 2**20
assert abs(p["total_bytes"] - law) < p["kv_block_bytes"], (p["total_bytes"], law)
assert b["weights"] == 2 * (1509949440 + 2 * 92544 * 2048) and b["graphs"] == 0
assert p["tokens"] == 64 * p["blocks"] == b["kv"] // 98304
EOT
done

# a card that is not there: what its driver takes is in it; host memory for swapped KV is in no sum
run 0 '"context":571277312,.*"swap":4290772992\},"total_bytes":[0-9]+,"free_bytes":150109880320,"exact":true' \
    "$turbo" plan "$b18" --device h200 --swap-space 4GiB --json
python3 - "$tmp/out" << 'EOT' || { echo "FAILED: sum of a card"; failures=$((failures + 1)); }
import json, sys
p = json.load(open(sys.argv[1]))
assert p["total_bytes"] == sum(v for k, v in p["bytes"].items() if k != "swap")
assert p["max_batch_size"] == 256
EOT
run 78 'swap_space is for the KV cache of a card' "$turbod" --model "$model" -t --swap-space 1GiB

# the plan of a folder, and what a turbod on it says it planned and took
"$turbo" plan "$model" --memory 1GiB --threads 2 --cache-max-entry-count 32MiB --json > "$tmp/demo.json"
begin --model "$model" --port 0 --threads 2 --cache-max-entry-count 32MiB
python3 - "$tmp/demo.json" "$url" << 'EOT' || { echo "FAILED: planned and taken differ"; failures=$((failures + 1)); }
import json, re, sys, urllib.request
plan = json.load(open(sys.argv[1]))
text = urllib.request.urlopen(sys.argv[2] + "/metrics").read().decode()
rows = {n: {k: int(v) for k, v in re.findall(r'^turbo:%s\{[^}]*kind="(\w+)"\} (\d+)$' % n, text, re.M)}
        for n in ("plan_bytes", "alloc_bytes")}
assert rows["plan_bytes"] == plan["bytes"], (rows, plan)
assert rows["alloc_bytes"] == rows["plan_bytes"], rows
assert len(plan["bytes"]) == 12
assert all(v > 0 for k, v in plan["bytes"].items() if k not in ("graphs", "images", "context", "swap"))
EOT
kill -TERM $pid
ended 0
logged 'blocks of 64 tokens; .* free; session_len 1024'
run 0 '^ok +memory: weights .*, KV .* in [0-9]+ blocks of 64 tokens; .* session_len 1024' "$turbod" --model "$model" -t

# what does not fit is shown, says what would help, and ends with 71; nonsense is refused
run 71 'needs 38\.0 GiB before any KV cache, 22\.4 GiB are free: use a smaller' "$turbo" plan "$b20" --device rtx4090
grep -Eq 'KV +196608 bytes a token' "$tmp/out" ||
    { echo "FAILED: nothing is shown of what does not fit"; failures=$((failures + 1)); }
run 71 'session_len 32768 needs 3\.0 GiB of KV cache, 1\.[0-9] GiB are allowed: lower session_len to [0-9]+' \
    "$turbo" plan "$b18" --memory 5GiB --session-len 32768
run 71 ' GiB before any KV cache, 900\.0 MiB are free: use a smaller' "$turbo" plan "$b18" --memory 900MiB
run 0 '^memory  .*: 512\.0 MiB free' "$turbo" plan "$model" --memory 512MiB
run 71 'at least 6\.0 MiB for one block' "$turbo" plan "$b18" --memory 4GiB --cache-max-entry-count 0.001
run 71 'cache_max_entry_count asks for 8\.0 GiB' "$turbo" plan "$b18" --memory 8GiB --cache-max-entry-count 8GiB
run 71 'before any KV cache, 7\.8 GiB are free: lower max_batch_size' \
    "$turbo" plan "$b18" --memory 8000MiB --max-batch-size 1024 --max-prefill-token-num 65536
run 71 'session_len 100000 needs .* lower session_len to' \
    "$turbod" --model "$model" -t --session-len 100000 --cache-max-entry-count 32MiB
run 78 'max_prefill_token_num is 32, max_batch_size 64' \
    "$turbod" --model "$model" -t --max-prefill-token-num 32 --max-batch-size 64
run 64 'takes cpu or a card by its name' "$turbo" plan "$b18" --device cuda:1
run 64 'did you mean rtx4090\?' "$turbo" plan "$b18" --device rtx4091
run 64 'did you mean a100-40g or a100-80g\?' "$turbo" plan "$b18" --device A100
run 64 'did you mean rtx3090, rtx4090 or rtx4090-tensor\?' "$turbo" plan "$b18" --device rtx
run 64 'in the table; use cpu, rtx3090, .*, h100 or h200$' "$turbo" plan "$b18" --device nvidia
run 64 'no model' "$turbo" plan
run 64 '\-\-memory is "much"' "$turbo" plan "$b18" --memory much
one() { [ "$(wc -l < "$tmp/out")" = 1 ] || { echo "FAILED: more than a line"; cat "$tmp/out"; failures=$((failures + 1)); }; }
run 64 '^turbo: --batch is "0"; a whole number 1 to 65536 is needed$' "$turbo" plan "$b18" --batch 0
one
run 64 '^turbo: --in is given twice$' "$turbo" plan "$b18" --in 1 --in 2
one
run 64 'does not know --gpu-memory-utilization; did you mean --cache-max-entry-count\?' \
    "$turbo" plan "$b18" --gpu-memory-utilization 0.9
run 64 'does not know --dev; did you mean --device\?' "$turbo" plan "$b18" --dev h200
run 64 'bits is for' "$turbo" plan "$b18" --bits 4
run 64 'no use for --port' "$turbo" plan "$b18" --port 1
run 64 'quantize is for a model; with --params alone, --bits 4' "$turbo" plan --params 7e9 --quantize int4
run 66 'cannot open the folder: .*; a model is a folder with config.json, or a GGUF file, and nothing is down' \
    "$turbo" plan internlm/internlm2-chat-1_8b
mkdir "$tmp/empty"
run 66 'empty has no config.json; a model is a folder with config.json, or a GGUF file$' "$turbo" plan "$tmp/empty"
echo '{}' > "$tmp/empty/config.json"
run 65 'config.json has neither architectures nor model_type' "$turbo" plan "$tmp/empty"
mkdir "$tmp/other"
echo '{"architectures":["Other"]}' > "$tmp/other/config.json"
run 65 'no plugin runs the architecture Other' "$turbo" plan "$tmp/other"
echo 'model = "'"$b18"'"; engine = { cache_max_entry_count = 0.5; };' > "$tmp/p.conf"
chmod 600 "$tmp/p.conf"
run 0 '"blocks":[0-9]+' "$turbo" plan --conf "$tmp/p.conf" --memory 8182MiB --json
[ "$(sed 's/"roofline.*//' "$tmp/out")" = "$(sed 's/"roofline.*//' "$tmp/0.5.json")" ] ||
    { echo "FAILED: conf and flag differ"; failures=$((failures + 1)); }

# this machine: measured, so only its being there is looked at
run 0 'cpu [a-z0-9 ]+, [0-9]+ threads?: [0-9.]+ [GT]FLOP/s, [0-9.]+ [GT]B/s' "$turbo" plan "$model"
mkdir "$tmp/null"
echo '{"architectures":["NullForCausalLM"]}' > "$tmp/null/config.json"
run 0 'the model has no weights' "$turbo" plan "$tmp/null" --svg "$tmp/null.svg"
run 74 'nonexistent/a.svg' "$turbo" plan "$b18" --svg /nonexistent/a.svg
for device in cpu h200 rtx4090; do
    "$turbo" plan "$b20" --device $device --svg "$tmp/$device.svg" > /dev/null 2>&1
done
"$turbo" plan --params 7e9 --svg "$tmp/params.svg" > /dev/null
for f in cpu h200 rtx4090 params; do
    python3 - "$tmp/$f.svg" << 'EOT' || { echo "FAILED: $f.svg"; failures=$((failures + 1)); }
import sys, xml.etree.ElementTree as e
root = e.parse(sys.argv[1]).getroot()
ns = "{http://www.w3.org/2000/svg}"
w, h = float(root.get("width")), float(root.get("height"))
words = " ".join(t.text for t in root.iter(ns + "text"))
assert "weights" in words and "batch" in words and "nan" not in words and "inf" not in words, words
for r in root.iter(ns + "rect"):
    x, y, a, b = (float(r.get(k)) for k in ("x", "y", "width", "height"))
    assert -0.01 <= x and x + a <= w + 0.01 and y + b <= h, r.attrib
curves = list(root.iter(ns + "polyline"))
assert len(curves) >= 1
for c in curves:
    for point in c.get("points").split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= w and 0 <= y <= h, point
EOT
done
result
