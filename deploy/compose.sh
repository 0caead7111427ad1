#!/usr/bin/env bash
# compose.sh build|up|wait|down|ps [PROFILE...]: docker-compose.yml with docker, or with podman and
# podman-compose (which knows no profiles, and leaves networks behind). Profiles: cpu unless told.
#
# PROJECT: its name, phalanx unless told. ENGINE: docker or podman, whichever is there.
set -euo pipefail
cd "$(dirname "$0")/.."
project=${PROJECT:-phalanx}
action=${1:?build, up, wait, down or ps}
shift
profiles=("${@:-cpu}")
engine=${ENGINE:-$(docker compose version >/dev/null 2>&1 && echo docker || echo podman)}
label="label=io.podman.compose.project=$project"

if [ "$action" = wait ]; then
    at=${PHALANX_PUBLISH:-127.0.0.1:1919}
    for _ in $(seq 1200); do
        if (exec 3<>"/dev/tcp/${at%:*}/${at##*:}" && printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3 &&
            read -r _ status _ <&3 && [ "$status" = 200 ]) 2>/dev/null; then
            echo "Phalanx is ready at http://$at"
            exit 0
        fi
        sleep 0.5
    done
    echo "compose.sh: not ready after 10 minutes" >&2
    exit 1
fi
if [ "$engine" = docker ]; then
    compose() { docker compose -p "$project" "${profiles[@]/#/--profile=}" "$@"; }
    case $action in
    build) compose build ;;
    up) compose up -d ;;
    down) compose down -v -t 5 ;;
    ps) compose ps ;;
    *) exit 2 ;;
    esac
    exit
fi

services() {
    for profile in "${profiles[@]}"; do
        case $profile in
        cpu) echo keygen scheduler rank-0 rank-1 tokenizer gateway ;;
        gpu) echo keygen scheduler ranks-gpu tokenizer gateway ;;
        monitoring) echo prometheus grafana ;;
        *) echo "compose.sh: no profile $profile" >&2 && exit 2 ;;
        esac
    done
}

# podman-compose asks for volumes before it makes them, and without systemd podman says at every
# container that it can not plan the health checks.
quiet() { grep -v 'systemd connection\|no such volume\|connect to syslog' >&2 || true; }

case $action in
build)
    podman build -q --network host -t phalanx:cpu -f deploy/Dockerfile .
    case " ${profiles[*]} " in *" gpu "*)
        podman build -q --network host -t phalanx:cuda -f deploy/Dockerfile \
            --build-arg BUILD_IMAGE="${PHALANX_CUDA_BUILD_IMAGE:-nvidia/cuda:12.6.3-devel-ubuntu24.04}" \
            --build-arg RUN_IMAGE="${PHALANX_CUDA_RUN_IMAGE:-ubuntu:24.04}" . ;;
    esac
    ;;
up)
    # shellcheck disable=SC2046 # one word a service
    podman-compose -p "$project" up -d --no-build $(services) >/dev/null 2> >(quiet)
    ;;
down)
    ids() { podman "$@" --filter "$label"; }
    ids ps -aq | xargs -r podman rm -f -t 5 -v >/dev/null 2> >(quiet)
    ids volume ls -q | xargs -r podman volume rm -f >/dev/null
    ids network ls -q | xargs -r podman network rm -f >/dev/null
    ;;
ps) podman ps -a --filter "$label" --format '{{.Names}} {{.Status}}' ;;
*) exit 2 ;;
esac
