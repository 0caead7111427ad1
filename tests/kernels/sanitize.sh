#!/bin/sh
# Kernel tests under compute-sanitizer: memcheck and racecheck. Usage: sanitize.sh TESTS_FOLDER
# [test...], where the folder is build/release/tests/kernels. Ends with 1 when one finds something,
# or does not end within LIMIT seconds (default 600). NCCL's kernels, what it asks the driver in vain
# while it looks around, and cuBLASLt's kernels, of which racecheck reports some, are not ours to check.
folder=$1
shift
[ $# -gt 0 ] || set -- test_ops_cuda test_attention_cuda test_steps_cuda \
    test_score_cuda test_tp_cuda cuda/test_gemm_cuda cuda/test_peers_cuda
failed=0
theirs=
for name in ncclDev nvjet cutlass cublas; do
    theirs="$theirs --kernel-name-exclude kernel_substring=$name"
done
export SANITIZE=1 # tests are smaller and more patient
for t in "$@"; do
    for tool in memcheck racecheck; do
        begin=$(date +%s)
        # shellcheck disable=SC2086
        out=$(timeout "${LIMIT:-600}" compute-sanitizer --tool $tool --target-processes all \
            --report-api-errors no $theirs --error-exitcode 7 "$folder/$t" 2>&1)
        rc=$?
        echo "$t $tool: status $rc, $(($(date +%s) - begin)) s," \
            "$(printf '%s\n' "$out" | grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' | tail -1)"
        [ $rc -eq 0 ] && continue
        failed=1
        printf '%s\n' "$out" | grep -v 'RUN\|OK \]' | tail -40
    done
done
exit $failed
