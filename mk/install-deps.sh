#!/bin/sh
# Installs what is missing, by name, through apt: install-deps.sh build|test|lint|fuzz|cover ...
# Each row below is a check and the packages that satisfy it, the first one that apt knows is taken
# (names differ between Debian 12 and later releases). Root is asked for only when something is
# missing.
set -u

rows() {
    case $1 in
    build)
        cat <<ROWS
cmd:gcc                         gcc
cmd:g++                         g++
cmd:pkg-config                  pkg-config pkgconf
file:/usr/include/string.h      libc6-dev
pc:libzmq                       libzmq3-dev
pc:libczmq                      libczmq-dev
pc:libuv                        libuv1-dev
pc:jansson                      libjansson-dev
pc:libpcre2-8                   libpcre2-dev
pc:libutf8proc                  libutf8proc-dev
pc:libxxhash                    libxxhash-dev
pc:libcurl                      libcurl4-openssl-dev
pc:msgpack-c,msgpack            libmsgpack-c-dev libmsgpack-dev
file:/usr/include/uthash.h      uthash-dev
file:/usr/include/gloo/config.h libgloo-dev
file:/usr/share/llhttp/llhttp.c,/usr/include/llhttp.h libllhttp-dev node-llhttp
ROWS
        ;;
    test)
        cat <<ROWS
file:/usr/include/cmocka.h      libcmocka-dev
python:venv,ensurepip           python3-venv
cmd:groff                       groff-base
cmd:git                         git
ROWS
        ;;
    lint)
        cat <<ROWS
cmd:clang-format-14             clang-format-14
cmd:clang-tidy-14               clang-tidy-14
ROWS
        ;;
    fuzz)
        echo "cmd:clang clang"
        ;;
    cover)
        echo "cmd:gcovr gcovr"
        ;;
    *)
        echo "install-deps.sh: unknown group $1" >&2
        exit 2
        ;;
    esac
}

# satisfied KIND:NAME[,NAME...]: any of the names will do (all of them for python).
satisfied() {
    kind=${1%%:*}
    names=$(echo "${1#*:}" | tr ',' ' ')
    if [ "$kind" = python ]; then
        for n in $names; do
            python3 -c "import $n" 2>/dev/null || return 1
        done
        return 0
    fi
    for n in $names; do
        case $kind in
        cmd) command -v "$n" >/dev/null && return 0 ;;
        pc) pkg-config --exists "$n" 2>/dev/null && return 0 ;;
        file) [ -e "$n" ] && return 0 ;;
        esac
    done
    return 1
}

# missing GROUP...: the rows that are not satisfied.
missing() {
    for group in "$@"; do
        rows "$group" | while read -r check packages; do
            satisfied "$check" || echo "$check $packages"
        done
    done
}

known_to_apt() {
    apt-cache policy "$1" 2>/dev/null | grep -q '^  Candidate: [^(]'
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "Root is needed to install them, and there is no sudo here: run \`make deps\` as root" >&2
        return 1
    fi
}

lacking=$(missing "$@")
[ -n "$lacking" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "Missing, and there is no apt-get here to install them (packages as Debian calls them):" >&2
    echo "$lacking" | while read -r check package others; do echo "  $package" >&2; done
    exit 1
fi
echo "Missing: $(echo "$lacking" | while read -r check package others; do printf '%s ' "$package"; done)"
as_root apt-get update -qq || exit 1
packages=$(echo "$lacking" | while read -r check candidates; do
    for c in $candidates; do
        if known_to_apt "$c"; then
            echo "$c"
            continue 2
        fi
    done
    echo "none of these packages is known to apt: $candidates" >&2
    echo "!"
done)
case $packages in *!*) exit 1 ;; esac
packages=$(echo "$packages" | sort -u | tr '\n' ' ')
echo "Installing: $packages"
# shellcheck disable=SC2086 # one word a package
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Use-Pty=0 $packages >/dev/null || exit 1
lacking=$(missing "$@")
[ -z "$lacking" ] || { echo "Still missing after the installation: $lacking" >&2; exit 1; }
