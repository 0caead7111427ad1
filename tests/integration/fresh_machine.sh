#!/usr/bin/env bash
# Shows that README's two commands work on a machine that has nothing: a container of a bare image
# gets a fresh clone, `apt-get install -y make && make run` until the server answers, Ctrl-C, and
# `make test`.
#
#   tests/integration/fresh_machine.sh [IMAGE] [run|test|all]
#
# Needs podman (or docker: ENGINE=docker) and the image, debian:bookworm-slim unless told otherwise.
# PIP_CERT and PIP_INDEX_URL are handed on for networks that have their own.
set -euo pipefail
image=${1:-docker.io/library/debian:bookworm-slim}
what=${2:-all}
engine=${ENGINE:-podman}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
name=phalanx-fresh-$$
trap '"$engine" rm -f -t 0 "$name" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

say() { echo "fresh_machine: $*"; }
inside() { "$engine" exec -i -w /src "$name" "$@"; }

# Processes of ours in the container.
ours() { inside sh -c 'for p in /proc/[0-9]*; do cat "$p/cmdline" 2>/dev/null | tr "\0" " " | grep -o "bin/[p]halanx[a-z-]*" || :; done'; }

git clone -q "$root" "$work/src"
extra=()
if [ -n "${PIP_CERT:-}" ]; then
    extra+=(-v "$PIP_CERT:/extra-ca.crt:ro" -e PIP_CERT=/extra-ca.crt)
fi
[ -z "${PIP_INDEX_URL:-}" ] || extra+=(-e "PIP_INDEX_URL=$PIP_INDEX_URL")
"$engine" run -d --init --name "$name" --network host -v "$work/src:/src" "${extra[@]}" "$image" \
    sleep infinity >/dev/null

# A bare image has no package lists; a fresh installation has.
say "$image: apt-get install -y make"
inside sh -c 'apt-get update -qq && apt-get install -y -qq make >/dev/null 2>&1'

if [ "$what" != test ]; then
    port=$((20000 + $$ % 20000))
    say "make run"
    inside make run ARGS="--port $port" >"$work/run.log" 2>&1 &
    run=$!
    for _ in $(seq 1200); do
        inside bash -c "exec 3<>/dev/tcp/127.0.0.1/$port; printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3; head -1 <&3" \
            2>/dev/null | grep -q ' 200 ' && break
        kill -0 $run 2>/dev/null || { cat "$work/run.log"; say "make run ended"; exit 1; }
        sleep 0.5
    done
    cat "$work/run.log"
    body='{"model":"demo-model","messages":[{"role":"user","content":"Good morrow!"}],"max_tokens":32}'
    inside bash -c "exec 3<>/dev/tcp/127.0.0.1/$port
        printf 'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${#body}\r\n\r\n%s' '$body' >&3
        cat <&3" | tee "$work/answer" | tail -1
    echo
    grep -q '"content"' "$work/answer" || { say "no answer"; exit 1; }
    # What Ctrl-C does: SIGINT to make and to the launcher.
    inside sh -c 'for p in /proc/[0-9]*; do
        case "$(cat "$p/cmdline" 2>/dev/null | tr "\0" " ")" in
        "make run"* | *bin/[p]"halanx serve"*) kill -INT "${p#/proc/}" ;;
        esac; done' || true
    for _ in $(seq 50); do
        [ -n "$(ours)" ] || break
        sleep 0.1
    done
    [ -z "$(ours)" ] || { say "left behind: $(ours)"; exit 1; }
    wait $run || true
    tail -1 "$work/run.log"
    say "make run: served, stopped, none left"
fi

if [ "$what" != run ]; then
    say "make test"
    inside make test
    say "make test: passed"
fi
