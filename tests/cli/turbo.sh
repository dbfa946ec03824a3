#!/bin/sh
# tests/cli/turbo.sh: the subcommands of turbo as a user types them, with the model that ships.
. "${srcdir:-.}/tests/cli/common.sh"

run 64 'usage: turbo COMMAND' "$turbo"
run 0 'turbo COMMAND --help' "$turbo" help
run 0 'usage: turbo run MODEL' "$turbo" help run
run 64 'did you mean run\?' "$turbo" rnu
run 0 'plugin ABI +1\.' "$turbo" --version
for c in run chat client tokenize detokenize eval plan plugin doctor; do
    run 0 "usage: turbo $c" "$turbo" $c --help
done

# run
want=$("$turbo" run "$model" --prompt "What is turbod?" --temperature 0 2> "$tmp/err")
[ -n "$want" ] && grep -Eq '^[0-9]+ prompt tokens .* tokens/s$' "$tmp/err" ||
    { echo "FAILED: run"; cat "$tmp/err"; failures=$((failures + 1)); }
same "$want" "$turbo" run "$model" --prompt "What is turbod?" --top-k 1
same "$want" "$turbo" run "$model" --prompt "What is turbod?" --temperature 0 --isa scalar --threads 1
echo "What is turbod?" | tr -d '\n' > "$tmp/q"
same "$want" "$turbo" run "$model" --file "$tmp/q" --temperature 0
got=$("$turbo" run "$model" --temperature 0 < "$tmp/q" 2> /dev/null)
[ "$got" = "$want" ] || { echo "FAILED: prompt from standard input"; failures=$((failures + 1)); }
same "$want" "$turbo" run --model "$model" --prompt "What is turbod?" --temperature=0
a=$("$turbo" run "$model" --prompt "Tell me a story." --seed 7 --temperature 1.5 2> /dev/null)
same "$a" "$turbo" run "$model" --prompt "Tell me a story." --seed 7 --temperature 1.5
run 0 '"finish_reason":"length".*"completion_tokens":3,' \
    "$turbo" run "$model" --prompt "Tell me a story." --max-tokens 3 --json
run 0 '"prompt_ids":\[1,4,7\]' "$turbo" run "$model" --prompt-ids 1,4,7 --max-tokens 2 --json
run 0 '^612,2489,382,290,951,282,844,311,2447$' "$turbo" run "$model" --prompt hello --ids --temperature 0
run 0 '"completion_tokens":40,' \
    "$turbo" run "$model" --prompt Hi --max-tokens 40 --ignore-eos --json --temperature 0
case $want in
*server*) same "${want%%server*}" "$turbo" run "$model" --prompt "What is turbod?" --temperature 0 --stop server ;;
*) echo "the demo model's answer holds no \"server\"; --stop is tested with its first blank"
    same "${want%% *}" "$turbo" run "$model" --prompt "What is turbod?" --temperature 0 --stop ' ' ;;
esac
run 64 'one of --prompt, --file and --prompt-ids' "$turbo" run "$model" --prompt a --prompt-ids 1
run 64 'did you mean --max-tokens\?' "$turbo" run "$model" --prompt a --max-token 3
run 64 'no use for --port' "$turbo" run "$model" --prompt a --port 3
run 64 'temperature is "3"; a number 0 to 2' "$turbo" run "$model" --prompt a --temperature 3
run 64 'a whole number' "$turbo" run "$model" --prompt a --max-tokens 1.5
run 66 'cannot open the folder' "$turbo" run /nonexistent --prompt a
run 65 'lower --max-tokens' "$turbo" run "$model" --prompt a --max-tokens 5000
run 78 'token id 999999 is not in' "$turbo" run "$model" --prompt-ids 999999
run 64 'quantize is "int3"; use int8 or int4, or leave it out$' \
    "$turbo" run "$model" --prompt a --quantize int3
run 64 'isa is "avx1024"; use auto, scalar, avx2, avx512 or neon$' "$turbo" run "$model" --prompt a --isa avx1024
printf 'bad \377 bytes' > "$tmp/bad"
run 65 'is not UTF-8' "$turbo" run "$model" --file "$tmp/bad"
run 66 'No such file' "$turbo" run "$model" --file /nonexistent

# chat on a pipe: several turns, commands, transcript
printf 'Hello!\n\nWhat is a KV\ncache?\n\n/regen\n/save %s\n/undo\n/bogus\nexit\n' "$tmp/chat.json" |
    "$turbo" chat "$model" --seed 1 > "$tmp/chat" 2> "$tmp/err" || { cat "$tmp/err"; failures=$((failures + 1)); }
[ "$(grep -c 'tokens/s' "$tmp/err")" = 3 ] && grep -q 'saved 4 messages' "$tmp/err" &&
    grep -q '/bogus is no command' "$tmp/err" && grep -q 'taken back' "$tmp/err" &&
    grep -q 'What is a KV\\ncache?' "$tmp/chat.json" ||
    { echo "FAILED: chat"; cat "$tmp/err" "$tmp/chat.json"; failures=$((failures + 1)); }

# tokenize, detokenize: there and back, also with only tokenizer files in the folder
mkdir "$tmp/tok"
cp "$model"/tokenizer* "$tmp/tok/"
for text in "Hello, world!" "  two  blanks " "äöü € 😀 漢字" "<|im_end|>"; do
    ids=$("$turbo" tokenize "$tmp/tok" "$text" --no-bos)
    same "$text" "$turbo" detokenize "$tmp/tok" "$ids"
    same "1,$ids" "$turbo" tokenize "$tmp/tok" "$text"
done
end=$("$turbo" tokenize "$model" '<|im_end|>' --trusted --no-bos)
case $end in *,* | '') echo "FAILED: --trusted gives $end"; failures=$((failures + 1)) ;; esac
same '<|im_end|>' "$turbo" detokenize "$model" "$end" --special
same '' "$turbo" detokenize "$model" "$end"
run 0 '"pieces":\["<s>","<\|im_end\|>"\]' "$turbo" tokenize "$model" '<|im_end|>' --trusted --json
run 78 'is not in 0\.\.' "$turbo" detokenize "$model" 99999999
run 64 'no token id' "$turbo" detokenize "$model" 1,x

# eval: logits are finite, as many as the vocabulary; ppl of one window equals that of sliding ones
# when they see the same context
run 0 '"vocab":[0-9]+,"logits":\[' "$turbo" eval logits "$model" --ids 1,4,7
rows=$("$turbo" eval logits "$model" --ids 1,4,7 --all | grep -c '^\[')
[ "$rows" = 3 ] || { echo "FAILED: --all gives $rows rows"; failures=$((failures + 1)); }
all=$("$turbo" eval logits "$model" --ids 1,4,7 --all | tail -1 | sed 's/\]}$//')
last=$("$turbo" eval logits "$model" --ids 1,4,7 | tail -1 | sed 's/\]}$//')
[ "$all" = "$last" ] || { echo "FAILED: logits of the last token differ"; failures=$((failures + 1)); }
"$turbo" detokenize "$model" "$("$turbo" tokenize "$model" "$want" --no-bos)" > "$tmp/text"
run 0 'perplexity [0-9.]+, .* in 1 windows of 1024' "$turbo" eval ppl "$model" --text "$tmp/text"
run 0 '"scored":[0-9]+,"windows":[0-9]+,"window":16,"stride":4' \
    "$turbo" eval ppl "$model" --text "$tmp/text" --window 16 --stride 4 --json
# Quantised keys and values: int8 changes the perplexity by 1 % at most, int4 (few tokens, heads of 32) by 25 %.
for q in 0 8 4; do
    "$turbo" eval ppl "$model" --text "$tmp/text" --quant-policy $q > "$tmp/ppl$q" 2>&1 || failures=$((failures + 1))
    cat "$tmp/ppl$q"
done
awk '{ p[NR] = $2; sub(",", "", p[NR]); good += / quant_policy (0 .f32.|0 .bf16.|8 .int8.|4 .int4.)$/ }
    function off(i) { return (p[i] / p[1] - 1) ^ 2 }
    END { exit !(good == 3 && NR == 3 && p[2] != p[1] && off(2) < 0.01 ^ 2 && off(3) < 0.25 ^ 2) }' \
    "$tmp/ppl0" "$tmp/ppl8" "$tmp/ppl4" || { echo "FAILED: eval ppl --quant-policy"; failures=$((failures + 1)); }
run 0 '"quant_policy":4,"kv":"int4"' "$turbo" eval ppl "$model" --text "$tmp/text" --quant-policy 4 --json
same "$want" "$turbo" run "$model" --prompt "What is turbod?" --temperature 0 --quant-policy 8
run 78 'quant_policy is 5; use 0 .*, 8 .* or 4' "$turbo" run "$model" --prompt a --quant-policy 5
run 78 'as int8, kv_dtype asks for f32; remove kv_dtype' \
    "$turbo" run "$model" --prompt a --quant-policy 8 --kv-dtype f32
run 64 'stride less than a window' "$turbo" eval ppl "$model" --text "$tmp/text" --window 8 --stride 8
run 64 'usage: turbo eval logits' "$turbo" eval logits "$model"

# bench: counts and what is refused; bench serve is tested in tests/http/test_bench.py
for c in serve offline decode prefill turns; do
    run 0 "usage: turbo bench $c" "$turbo" bench $c --help
    run 0 "usage: turbo bench $c" "$turbo" help bench $c
done
run 64 'bench needs another word' "$turbo" bench
run 64 'did you mean bench serve\?' "$turbo" bench srve
run 0 '"requests":6,"tokens_in":180,"tokens_out":30,"cached":[0-9],' \
    "$turbo" bench offline "$model" --limit 6 --input 30 --output 5 --rounds 2 --json -
run 0 '"requests":3,"tokens_in":[0-9]+,"tokens_out":754,' "$turbo" bench offline "$model" \
    --trace "$src/tests/golden/bench/azure.csv" --context 1000 --rounds 1 --json -
run 0 '"batch":3,"context":40,"tokens_per_s":' \
    "$turbo" bench decode "$model" --batch 1,3 --context 20,40 --steps 8 --rounds 2 --json - --svg "$tmp/d.svg"
[ "$(grep -c '<polyline' "$tmp/d.svg")" = 2 ] || { echo "FAILED: svg"; failures=$((failures + 1)); }
run 0 '"length":70,"tokens_per_s":' \
    "$turbo" bench prefill "$model" --length 30,70 --rounds 2 --json - --svg "$tmp/p.svg"
run 64 'session_len is 1024' "$turbo" bench prefill "$model" --length 4000
run 64 'with commas are needed' "$turbo" bench decode "$model" --batch 1,,2
run 64 'needs enable_prefix_caching' "$turbo" bench decode "$model" --no-enable-prefix-caching
run 64 'has texts, not lengths' "$turbo" bench offline "$model" --trace "$src/tests/golden/bench/sharegpt.json"
run 66 'cannot open the folder' "$turbo" bench decode /nonexistent
# bench turns: greedy tokens are those of `turbo run`, whatever was measured in between
cat >"$tmp/turns" <<'END'
greedy 6 1,5,9
decode 3 40 8 7
prefill 70 11

prefill 70 11
greedy 6 1,5,9
decode 1 40 8
greedy 2 9999
machine x
walk
END
"$turbo" bench turns "$model" <"$tmp/turns" >"$tmp/turned"
want_ids=$("$turbo" run "$model" --prompt-ids 1,5,9 --max-tokens 6 --temperature 0 --ignore-eos --ids 2>/dev/null)
[ "$(grep -c "^{\"ids\":\[$want_ids\]}\$" "$tmp/turned")" = 2 ] &&
    [ "$(grep -c '^{"seconds_a_step":[0-9.]*,"steps":[0-9]*}$' "$tmp/turned")" = 1 ] &&
    [ "$(grep -c '^{"seconds":[0-9.]*,"cached":0}$' "$tmp/turned")" = 1 ] &&
    grep -q '^{"seconds":[0-9.]*,"cached":69}$' "$tmp/turned" &&
    grep -q '^{"error":"\\"\\" should be a number' "$tmp/turned" &&
    grep -q '^{"error":"prompt: token id 9999 is not in' "$tmp/turned" &&
    grep -q '^{"read_bytes_per_s":[0-9.e+]*,"fma_flops":' "$tmp/turned" &&
    grep -q '^{"error":".*walk.* is not decode' "$tmp/turned" &&
    grep -q '^{"machine":".*"weight_bytes":[1-9]' "$tmp/turned" ||
    { echo "FAILED: bench turns"; cat "$tmp/turned"; failures=$((failures + 1)); }

# plugins, doctor, man pages
run 0 'loaded +samp-std' "$turbo" plugin list
run 0 '"offers":"sampler std"' "$turbo" plugin list --json
run 64 'usage: turbo plugin' "$turbo" plugin frob
run 0 'port +127.0.0.1:0 is free' "$turbo" doctor --port 0
grep -q 'nothing is wrong' "$tmp/out" || { cat "$tmp/out"; failures=$((failures + 1)); }
run 78 'WRONG .*nonexistent' "$turbo" doctor --port 0 --plugin-path /nonexistent
for page in turbo.1 turbod.8 turbo.conf.5; do
    run 0 '^\.Sh DESCRIPTION' "$turbo" --man $page
    if command -v man > /dev/null; then
        LC_ALL=C.UTF-8 MANROFFSEQ='' man --warnings -E UTF-8 -l -Tutf8 "$tmp/out" > /dev/null 2> "$tmp/warn"
        [ ! -s "$tmp/warn" ] || { echo "FAILED: $page"; head -5 "$tmp/warn"; failures=$((failures + 1)); }
    fi
done

# the client against a server that is not there
run 74 'is turbod running there' "$turbo" client http://127.0.0.1:1 --once hi
result
