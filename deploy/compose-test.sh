#!/usr/bin/env bash
# Shows that docker-compose.yml works from nothing: build, up, the first token, health, what becomes
# of a container that is killed, down, and that nothing is left. Prints what it measures; ends with
# a non-zero status when something did not hold.
#
#   deploy/compose-test.sh             needs docker compose, or podman and podman-compose
#
# PYTHON with the openai package asks through it; otherwise curl does.
set -euo pipefail
cd "$(dirname "$0")/.."
export PROJECT=phalanx-test-$$
port=$((20000 + $$ % 20000))
export PHALANX_PUBLISH=127.0.0.1:$port
engine=${ENGINE:-$(docker compose version >/dev/null 2>&1 && echo docker || echo podman)}
export ENGINE=$engine
url=http://127.0.0.1:$port
python=${PYTHON:-build/venv/bin/python}
"$python" -c 'import openai' 2>/dev/null || python=
processes="scheduler rank-0 rank-1 tokenizer gateway"

say() { echo "compose-test: $*"; }
fail() {
    say "FAILED: $*"
    for p in $processes; do
        echo "== $p"
        "$engine" logs "$(name "$p")" 2>&1 | tail -15 || true
    done
    exit 1
}
trap 'deploy/compose.sh down >/dev/null 2>&1 || true' EXIT

now_ms() { date +%s%3N; }
name() { "$engine" ps -aq --filter "name=^${PROJECT}[_-]$1[_-]1\$"; }
inspect() { "$engine" inspect -f "$2" "$(name "$1")"; }
status() { curl -s -m 5 -o /dev/null -w '%{http_code}' "$url/health/ready" || true; }

# until SECONDS COMMAND...: repeats it until it succeeds.
until_true() {
    local deadline=$(($(now_ms) + $1 * 1000))
    shift
    until "$@"; do
        [ "$(now_ms)" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}
ready() { [ "$(status)" = 200 ]; }
healthy() {
    if [ "$engine" = podman ]; then # its own timers need systemd
        podman healthcheck run "$(name "$1")" >/dev/null 2>&1
    else
        [ "$(inspect "$1" '{{.State.Health.Status}}')" = healthy ]
    fi
}

# The first piece of a streamed answer.
ask() {
    if [ -n "$python" ]; then
        "$python" - "$url" <<'PYTHON' 2>/dev/null
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=20)
for chunk in client.chat.completions.create(
        model="demo-model", messages=[{"role": "user", "content": "Good morrow!"}], max_tokens=16,
        seed=1, stream=True):
    if chunk.choices and chunk.choices[0].delta.content:
        print(repr(chunk.choices[0].delta.content))
        sys.exit(0)
sys.exit(1)
PYTHON
    else
        curl -s -N -m 20 "$url/v1/chat/completions" -H 'Content-Type: application/json' -d \
            '{"model":"demo-model","messages":[{"role":"user","content":"Good morrow!"}],"max_tokens":16,"seed":1,"stream":true}' |
            grep -o -m1 '"content":"[^"][^"]*"'
    fi
}

start=$(now_ms)
deploy/compose.sh build >/dev/null
built=$(($(now_ms) - start))
size() { "$engine" image inspect -f '{{.Size}}' "$1" 2>/dev/null || echo 0; }
say "image built in $built ms: $(($(size phalanx:cpu) / 1000000)) MB, its base $(($(size debian:bookworm-slim) / 1000000)) MB"

start=$(now_ms)
deploy/compose.sh up
say "compose up returned after $(($(now_ms) - start)) ms"
until_true 120 ready || fail "not ready"
token=$(ask) || fail "no token"
say "first token $token $(($(now_ms) - start)) ms after compose up (through $([ -n "$python" ] && echo the openai client || echo curl))"
for p in $processes; do
    until_true 30 healthy "$p" || fail "$p is not healthy"
done
say "all healthy"

# What the images promise.
for p in $processes; do
    [ "$(inspect "$p" '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}')" = "10001:10001 true" ] ||
        fail "$p is root or its root file system is writable"
    grep -q '^CapEff:\s*0000000000000000$' "/proc/$(inspect "$p" '{{.State.Pid}}')/status" || fail "$p has capabilities"
    grep -q '^NoNewPrivs:\s*1$' "/proc/$(inspect "$p" '{{.State.Pid}}')/status" || fail "$p may gain privileges"
done
say "uid 10001, read-only, no capabilities, no new privileges"

# A death of each: the restart policy starts it again. Ranks and scheduler end together and meet
# again; a request that comes meanwhile gets an error.
for p in rank-1 rank-0 scheduler tokenizer gateway; do
    before=$(inspect "$p" '{{.State.StartedAt}}')
    start=$(now_ms)
    kill -9 "$(inspect "$p" '{{.State.Pid}}')"
    again() { [ "$(inspect "$p" '{{.State.StartedAt}}')" != "$before" ] && ready && ask >/dev/null; }
    until_true 90 again || fail "no token after $p was killed"
    say "$p killed: next token $(($(now_ms) - start)) ms later"
done

start=$(now_ms)
deploy/compose.sh down
say "down in $(($(now_ms) - start)) ms"
for what in "ps -aq" "volume ls -q" "network ls -q"; do
    # shellcheck disable=SC2086 # two words
    left=$("$engine" $what --filter "label=com.docker.compose.project=$PROJECT")
    [ -z "$left" ] || fail "left behind: $what: $left"
done
say "nothing is left"
