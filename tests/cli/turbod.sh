#!/bin/sh
# tests/cli/turbod.sh: the life of the daemon: testing and printing a conf, starting, reloading, draining,
# exit codes.
. "${srcdir:-.}/tests/cli/common.sh"
conf=$src/conf/internlm2.conf

# -t, -T, help, version, what is refused
run 0 'usage: turbod' "$turbod" --help
run 0 'cache-max-entry-count X' "$turbod" --help
run 0 'plugin ABI' "$turbod" --version
run 0 '^ok +weights' "$turbod" --conf "$conf" -t
run 0 'port = 23333; # file' "$turbod" --conf "$conf" -T
run 0 'port = 99; # flag' "$turbod" --conf "$conf" -T --port 99
run 0 'threads = 3; # environment' env TURBO_ENGINE_THREADS=3 "$turbod" --conf "$conf" -T
run 64 'did you mean --port' "$turbod" --prot 3
run 64 'port is x' "$turbod" --port x
run 78 'no model' "$turbod" -t
run 66 'No such file' "$turbod" --conf /nonexistent
run 66 'cannot open the folder' "$turbod" --model /nonexistent -t
run 78 'unknown setting server.prot; did you mean port' env sh -c \
    "umask 077; echo 'server = { prot = 1; };' > '$tmp/a.conf'; exec '$turbod' --conf '$tmp/a.conf' -t"
run 78 'cache_max_entry_count is "1.5"' "$turbod" --conf "$conf" -t --cache-max-entry-count 1.5
run 78 'default_policy "nobody"' "$turbod" --conf "$conf" -t --default-policy nobody
run 66 'plugin folder /nonexistent: No such' "$turbod" --conf "$conf" -t --plugin-path /nonexistent
cp -r "$model" "$tmp/broken"
head -c 1000 "$model/model.safetensors" > "$tmp/broken/model.safetensors"
run 65 'model.safetensors' "$turbod" --model "$tmp/broken" -t
run 65 'error' "$turbod" --model "$tmp/broken" --port 0
run 78 'running as root|api_keys|loopback|key' "$turbod" --conf "$conf" --host 0.0.0.0 --port 0

# starts, answers, says the port is taken, stops
begin --conf "$conf" --port 0
logged 'listening on http://127.0.0.1:[0-9]+'
logged 'ready in [0-9.]+ s'
run 0 'tokens/s' "$turbo" client "$url" --once Hello --temperature 0
one=$("$turbo" client "$url" --once "What is turbod?" --temperature 0 2> /dev/null)
same "$one" "$turbo" run "$model" --prompt "What is turbod?" --temperature 0
run 64 'does not know --bogus' "$turbo" client "$url" --once Hello --bogus
run 78 '40[04]' "$turbo" client "$url" --once Hello --policy nobody
run 74 'in use' "$turbod" --conf "$conf" --port "${url##*:}"
kill -TERM $pid
ended 0
logged 'stopped$'

# a mapped file that is cut short while it serves; the second start maps what the first one wrote
begin --conf "$conf" --port 0 --cache-dir "$tmp/cache"
kill -TERM $pid
ended 0
begin --conf "$conf" --port 0 --cache-dir "$tmp/cache"
logged 'matrices of .*[.]weights'
for f in "$tmp"/cache/turbo-*.weights; do : > "$f"; done
"$turbo" client "$url" --once Hello --temperature 0 > "$tmp/out" 2>&1
ended 74
logged 'error: a mapped file .* was cut short.* put the whole file back'
[ "$(grep -c 'was cut short' "$tmp/log")" = 1 ] || { echo "FAILED: it is told more than once"; failures=$((failures + 1)); }

# systemd's protocol, reload, drain
mkdir "$tmp/policies"
cat > "$tmp/b.conf" << EOF
model = "$model";
policies = "policies";
server = { port = 0; drain_ms = 5000; };
EOF
cat > "$tmp/notify.py" << 'EOF'
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.settimeout(20)
with open(sys.argv[2], "w") as f:
    while True:
        text = s.recv(4096).decode()
        f.write(text + "\n")
        f.flush()
        if "STOPPING=1" in text:
            break
EOF
notify=
if command -v python3 > /dev/null; then
    python3 "$tmp/notify.py" "$tmp/socket" "$tmp/notified" &
    notify=$!
    pids="$pids $notify"
    while [ ! -S "$tmp/socket" ]; do sleep 0.05; done
    NOTIFY_SOCKET=$tmp/socket
    export NOTIFY_SOCKET
else
    echo "python3 is missing: sd_notify is not tested"
fi
begin --conf "$tmp/b.conf"
unset NOTIFY_SOCKET
run 78 'policy' "$turbo" client "$url" --once Hello --policy mine
cat > "$tmp/policies/mine.lua" << 'EOF'
turbo.policy { request = function(req) req.temperature = 0 end }
EOF
kill -HUP $pid
sleep 0.5
logged ' reloaded'
run 0 'tokens/s' "$turbo" client "$url" --once Hello --policy mine
echo 'this is no Lua (' > "$tmp/policies/bad.lua"
kill -HUP $pid
sleep 0.5
logged 'reload: .*bad.lua.*the old configuration stays'
run 0 'tokens/s' "$turbo" client "$url" --once Hello --policy mine
rm "$tmp/policies/bad.lua"
echo 'server = { prot = 1; };' >> "$tmp/b.conf"
kill -HUP $pid
sleep 0.5
logged 'reload: .*the old configuration stays'
sed -i '$d' "$tmp/b.conf"
sed -i 's/port = 0/port = 1/; $a log_level = "warn";' "$tmp/b.conf"
kill -HUP $pid
sleep 0.5
logged 'port stays as it is; it takes effect after a restart'
run 0 'tokens/s' "$turbo" client "$url" --once Hello
kill -INT $pid
ended 0
if [ -n "$notify" ]; then
    wait $notify
    for w in 'STATUS=loading' 'READY=1' 'RELOADING=1' 'STOPPING=1'; do
        grep -q "$w" "$tmp/notified" || { echo "FAILED: $w was not notified"; failures=$((failures + 1)); }
    done
fi

# an answer that runs is finished on SIGTERM; a second signal ends it at once, and the log says that it does
begin --conf "$conf" --port 0 --isa scalar --threads 1
"$turbo" client "$url" --once "Tell me a story." > "$tmp/story" 2> "$tmp/story.err" &
client=$!
sleep 0.15
kill -TERM $pid
wait $client
[ $? = 0 ] && [ -s "$tmp/story" ] || { echo "FAILED: the answer was cut"; cat "$tmp/story.err"; failures=$((failures + 1)); }
ended 0
if [ -n "$notify" ]; then
    begin --conf "$conf" --port 0 --isa scalar --threads 1
    python3 - "$url" "$tmp/begun" > "$tmp/long" << 'EOF' &
import json, sys, urllib.request
ask = {"prompt": "a", "max_tokens": 1000, "n": 8, "ignore_eos": True, "stream": True}
r = urllib.request.urlopen(urllib.request.Request(
    sys.argv[1] + "/v1/completions", json.dumps(ask).encode(), {"Content-Type": "application/json"}))
first = r.readline()
open(sys.argv[2], "w").close()
text = r.read().decode()
assert '"code":"shutting_down"' in text and text.endswith("data: [DONE]\n\n"), text[-300:]
print("whole")
EOF
    client=$!
    pids="$pids $client"
    while [ ! -f "$tmp/begun" ] && kill -0 $client 2> /dev/null; do sleep 0.05; done
    kill -INT $pid
    sleep 0.2
    logged 'waiting at most 30.0 s \(drain_ms\) for 1 running answer; a second signal'
    kill -INT $pid
    ended 0
    logged 'stopping at once; 1 answer ends with an error'
    wait $client
    grep -q whole "$tmp/long" || { echo "FAILED: the answer has no end"; failures=$((failures + 1)); }
fi
result
