#!/bin/bash
# phalanx-ranks OPTION...: all ranks of a group in one container, as processes with these options.
# When one ends, the others are ended too, and the status is that one's.
set -u
size=${PHALANX_TP_SIZE:-1} pids=()
for ((rank = 0; rank < size; rank++)); do
    phalanx-worker --rank "$rank" "$@" &
    pids+=($!)
done
stopping=0
trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
wait -n
status=$?
kill -TERM "${pids[@]}" 2>/dev/null
wait
[ "$stopping" = 1 ] && exit 0
exit "$status"
