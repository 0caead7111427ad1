#!/bin/bash
# Is the process of this container well? For containers, which have no curl.
#
#   phalanx-healthcheck http PORT        /health/ready answers 200
#   phalanx-healthcheck listens PORT     somebody listens there
#   phalanx-healthcheck connected PORT   there is a connection to that port of another host
set -u
what=${1:?http, listens or connected} port=${2:?a port}

# State (0A: listens, 01: established) of a row of /proc/net/tcp with that local or remote port.
socket_in() { # FIELD STATE
    awk -v field="$1" -v state="$2" -v port="$(printf ':%04X' "$port")" \
        '$field ~ port "$" && $4 == state {found = 1} END {exit !found}' /proc/net/tcp /proc/net/tcp6
}

case $what in
http)
    exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
    printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3
    read -r -t 5 _ status _ <&3 && [ "$status" = 200 ]
    ;;
listens) socket_in 2 0A ;;
connected) socket_in 3 01 ;;
*) exit 2 ;;
esac
