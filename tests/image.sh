#!/usr/bin/env bash
# Builds the container image, and tries it as carefully as it should be run.
#
#   tests/image.sh build    with docker, podman or buildah, whichever works here
#   tests/image.sh test     builds it, runs it with a file system that cannot be written, without
#                           capabilities, as its own user, and asks it the main job
#   tests/image.sh base     makes a base image from Debian's packages, for a machine without a hub:
#                           needs mmdebstrap and buildah. Then: BASE=localhost/python make image-test
#
#   ENGINE          docker, podman or buildah; default: the first one that works
#   IMAGE           the name of the image; default: git-model-registry
#   BASE            the base image; default: as the Dockerfile says
#   BUILD_OPTIONS   more for `build`, such as --volume for certificates and pip's configuration
#   ENGINE_OPTIONS  before the verb, such as --runtime runc
#   RUN_OPTIONS     more for `run`, such as --ulimit
#   NETWORK         host: where a port cannot be published
#   SUITE, MIRROR   what `base` is made from; default: bookworm, Debian's own
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-git-model-registry}
NETWORK=${NETWORK:-}
read -ra build_options <<<"${BUILD_OPTIONS:-}"
read -ra engine_options <<<"${ENGINE_OPTIONS:-}"
read -ra run_options <<<"${RUN_OPTIONS:-}"

fail() {
    echo "image: $*" >&2
    exit 1
}

engine() {
    if [ -n "${ENGINE:-}" ]; then
        echo "$ENGINE"
    elif docker info >/dev/null 2>&1; then
        echo docker
    elif command -v podman >/dev/null; then
        echo podman
    elif command -v buildah >/dev/null; then
        echo buildah
    else
        fail 'neither docker, podman nor buildah works here'
    fi
}

build() {
    local engine options=(--tag "$IMAGE") epoch
    engine=$(engine)
    epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
    [ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE")
    if [ "$engine" = docker ]; then
        options+=(--build-arg "SOURCE_DATE_EPOCH=$epoch")
    else
        # Docker's format, for the other has no HEALTHCHECK; one time for every file in it.
        options+=(--format docker --timestamp "$epoch")
    fi
    "$engine" "${engine_options[@]}" build "${options[@]}" "${build_options[@]}" .
}

base() {
    local mirror=${MIRROR:-http://deb.debian.org/debian} container
    workspace=$(mktemp -d)
    trap 'rm -rf "$workspace"' EXIT
    mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
        --customize-hook='ln -s /usr/bin/python3 "$1"/usr/local/bin/python' \
        "${SUITE:-bookworm}" "$workspace/base.tar" "$mirror"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$workspace/base.tar" /
    buildah config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin \
        --env LANG=C.UTF-8 --cmd python "$container"
    buildah commit --rm --quiet "$container" localhost/python
}

# From here on: one container, one volume, and what is asked of them

run() { "$engine" "${engine_options[@]}" "$@"; }

confined=(
    --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --memory 512m
    --env REGISTRY_CONFIG=/srv/registry/var/demo/registry.yaml
)

expect() { # what, expected, found
    [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"
    echo "ok: $1"
}

end() {
    run rm --force "$name" >/dev/null 2>&1 || true
    run volume rm --force "$name" >/dev/null 2>&1 || true
    rm -rf "$workspace"
}

inside() { run exec "$name" "$@"; }

test_image() {
    local url port answer link path md5 token check
    engine=$(engine)
    [ "$engine" != buildah ] || fail 'buildah can build the image, but not run it: install podman'
    name=registry-image-test-$$
    workspace=$(mktemp -d)
    trap end EXIT

    run volume create "$name" >/dev/null
    local storage=(--volume "$name:/srv/registry/var")
    if [ "$NETWORK" = host ]; then
        port=$((20000 + RANDOM % 10000))
        storage+=(--network host --env "PORT=$port")
    else
        storage+=(--publish 127.0.0.1::8080)
    fi

    # A repository and a store, made by the image itself in its volume.
    run run --rm --network none "${confined[@]}" "${run_options[@]}" \
        --volume "$name:/srv/registry/var" "$IMAGE" python -c \
        'from pathlib import Path; from registry import demo; demo.create(Path("var/demo"), "http://registry")'
    run run --detach --name "$name" "${confined[@]}" "${storage[@]}" "${run_options[@]}" \
        "$IMAGE" >/dev/null
    if [ "$NETWORK" = host ]; then
        url=http://127.0.0.1:$port
    else
        url=http://$(run port "$name" 8080/tcp | head -n 1)
    fi
    curl --silent --fail --output /dev/null \
        --retry 60 --retry-delay 1 --retry-all-errors --max-time 5 "$url/healthz" ||
        { run logs "$name" >&2; fail 'the service does not start'; }

    token=$(inside registry token create --name image-test)
    answer=$(curl --silent --show-error --fail --header "Authorization: token $token" \
        --retry 10 --retry-all-errors \
        "$url/api/model-registry/get-download-uris?repo=demo/models&name=text-classifier&stage=prod")
    # {"model.pkl":"http://registry/objects/..."}
    path=$(cut -d '"' -f 2 <<<"$answer")
    link=$(cut -d '"' -f 4 <<<"$answer")
    expect 'the artifact has the path of the demo' model.pkl "$path"
    curl --silent --show-error --fail --dump-header "$workspace/headers" \
        --output "$workspace/model.pkl" "$url${link#http://registry}"
    md5=$(sed -n 's/^etag: "\([0-9a-f]\{32\}\)".*/\1/Ip' "$workspace/headers")
    expect 'the model arrives whole' "$md5" "$(md5sum <"$workspace/model.pkl" | cut -d ' ' -f 1)"
    expect 'what is no code is in it, too' 200 \
        "$(curl --silent --output /dev/null --write-out '%{http_code}' \
            --header "Authorization: token $token" "$url/api/docs/style.css")"
    # Links begin with the public URL, which leads to the container.
    printf 'connect-to = "registry:80:%s"\n' "${url#http://}" >"$workspace/.curlrc"
    HOME=$workspace REGISTRY_URL=http://registry REGISTRY_TOKEN=$token \
        REGISTRY_REPOSITORY=demo/models REGISTRY_NAME=tokenizer REGISTRY_OUTPUT=$workspace/job \
        sh ci/download.sh || fail 'a CI job does not get its model'
    expect 'a CI job gets a directory' 'merges/en.txt vocab.txt' \
        "$(cd "$workspace/job/tokenizer" && find . -type f | sort | sed 's,^\./,,' | paste -s -d ' ')"
    expect 'nobody gets in without a token' 401 \
        "$(curl --silent --output /dev/null --write-out '%{http_code}' \
            "$url/api/model-registry/get-download-uris?repo=demo/models&name=text-classifier")"

    expect 'it runs as its own user' 10001 "$(inside id -u)"
    expect 'it has no capabilities' 0000000000000000 \
        "$(inside sed -n 's/^CapEff:\t//p' /proc/1/status)"
    expect 'its files cannot be changed' no \
        "$(inside sh -c 'touch /opt/registry/x 2>/dev/null && echo yes || echo no')"
    expect 'it has no tools to build with' '' \
        "$(inside sh -c 'for tool in gcc cc make pip pip3; do command -v $tool; done; true')"
    expect 'Python has none either' no \
        "$(inside sh -c 'python -c "import pip" 2>/dev/null && echo yes || echo no')"
    # By hand, as the image says it: not every engine has a timer for it.
    check=$(run image inspect --format '{{index .Config.Healthcheck.Test 3}}' "$IMAGE")
    expect 'its health check passes' 0 "$(inside python -c "$check" >&2; echo $?)"
    run stop --time 35 "$name" >/dev/null
    expect 'it ends when it is asked to' 0 "$(run inspect --format '{{.State.ExitCode}}' "$name")"
    run image inspect --format 'size: {{.Size}} bytes' "$IMAGE"
}

case ${1:-} in
build) build ;;
test) build && test_image ;;
base) base ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
