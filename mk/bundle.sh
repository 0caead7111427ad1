#!/bin/sh
# bundle.sh BUILD OUT: copies executables, backends and the shared libraries they need (except for
# glibc's own) to OUT/bin and OUT/lib. Their run path is $ORIGIN/../lib, so OUT can be moved.
set -eu
build=$1 out=$2
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
cp "$build"/bin/phalanx* "$out/bin"
cp "$build"/lib/libphalanx-*.so "$out/lib"
strip --strip-debug "$out"/bin/* "$out"/lib/*
# Lines of ldd: "libzmq.so.5 => /lib/x86_64-linux-gnu/libzmq.so.5 (0x...)".
ldd "$out"/bin/* "$out"/lib/* | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u |
    while read -r name path; do
        case $name in
        libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.* | ld-linux*) ;;
        *) cp -L "$path" "$out/lib/$name" ;;
        esac
    done
missing=$(ldd "$out"/bin/* "$out"/lib/* | grep 'not found' || true)
[ -z "$missing" ] || { echo "$missing" >&2; exit 1; }
