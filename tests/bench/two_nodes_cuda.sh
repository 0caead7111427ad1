#!/usr/bin/env bash
# Two launchers as two nodes on one host with GPUs, NCCL between their ranks, against one launcher
# with as many ranks: the same greedy text, and how fast each is.
#
#   tests/bench/two_nodes_cuda.sh MODEL [TP]      TP: ranks of both together, 4
#
# BIN: folder of the executables (build/release/bin). The first TP GPUs are used (or those of
# GPUS=2,3,6,7). OPTIONS: more options of `phalanx serve`, as --dummy-weight. DEVICE=cpu tries it without.
set -euo pipefail
model=$1 tp=${2:-4}
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${BIN:-$root/build/release/bin}
gpus=${GPUS:-$(seq -s, 0 $((tp - 1)))}
work=$(mktemp -d)
pids=()
stop() {
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait || true
    pids=()
}
trap 'stop; rm -rf "$work"' EXIT

half=$((tp / 2))
serve() { # NAME GPUS PORT OPTION...
    local name=$1 visible=$2 port=$3
    shift 3
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$visible "$bin/phalanx" serve --model-path "$model" --tp "$tp" \
        --device "${DEVICE:-cuda}" --port "$port" --run-dir "$work/$name" ${OPTIONS:-} "$@" \
        >"$work/$name.log" 2>&1 &
    pids+=($!)
}
ready() { # PORT
    for _ in $(seq 600); do
        curl -sf "http://127.0.0.1:$1/health/ready" >/dev/null && return
        for pid in "${pids[@]}"; do
            kill -0 "$pid" 2>/dev/null || { cat "$work"/*.log; exit 1; }
        done
        sleep 0.5
    done
    cat "$work"/*.log
    exit 1
}
ask() { # FILE: texts and log probabilities of a few prompts
    for prompt in "Once upon a time" "The capital of France is" "1 2 3 4 5 6 7"; do
        curl -sf http://127.0.0.1:1919/v1/completions -H 'Content-Type: application/json' -d \
            "{\"prompt\":\"$prompt\",\"max_tokens\":64,\"temperature\":0,\"ignore_eos\":true,\"logprobs\":3}" |
            python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)["choices"]))'
    done >"$1"
    "$bin/phalanx" bench --port 1919 --disable-tqdm --num-prompts 64 --max-concurrency 16 \
        --random-input-len 256 --random-output-len 64
}

echo "== one node, TP $tp"
serve one "$gpus" 1919 --disable-custom-all-reduce
ready 1919
ask "$work/one.json"
stop

echo "== two nodes, TP $tp = 2 x $half"
nodes=(--nnodes 2 --dist-init-addr 127.0.0.1:5000)
serve node-0 "$(cut -d, -f "1-$half" <<<"$gpus")" 1919 "${nodes[@]}" --node-rank 0
serve node-1 "$(cut -d, -f "$((half + 1))-$tp" <<<"$gpus")" 1920 "${nodes[@]}" --node-rank 1
ready 1919
ready 1920
ask "$work/two.json"
grep -h 'is here\|nodes are here' "$work/node-0.log"
cmp "$work/one.json" "$work/two.json" && echo "same texts, same log probabilities"
