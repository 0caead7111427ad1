#!/bin/sh
# Runs cmocka executables one after the other; shows the output of those that fail; ends with one
# line of counts (tests inside the executables), exit 1 when any failed.
passed=0 failed=0 skipped=0
for t in "$@"; do
    out=$("$t" 2>&1)
    rc=$?
    p=$(printf '%s\n' "$out" | sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' | tail -1)
    f=$(printf '%s\n' "$out" | sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' | tail -1)
    s=$(printf '%s\n' "$out" | sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' | tail -1)
    passed=$((passed + ${p:-0})) skipped=$((skipped + ${s:-0}))
    if [ "$rc" -ne 0 ]; then
        [ "${f:-0}" -gt 0 ] || f=1
        failed=$((failed + f))
        printf '%s\n' "$out" | tail -60
        echo "FAILED: $t (status $rc)"
    else
        echo "ok: ${t##*/unit/} (${p:-0})"
    fi
done
echo "unit: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
