#!/bin/sh
# Downloads a model from a registry and checks every file. Needs curl, sed and md5sum.
#
#   REGISTRY_URL         where the registry is
#   REGISTRY_REPOSITORY  the repository: its name there, or its URL
#   REGISTRY_NAME        the artifact, as dvc.yaml names it
#   REGISTRY_VERSION     a version, or
#   REGISTRY_STAGE       a stage; default: the latest version
#   REGISTRY_OUTPUT      the directory below which the files go, with their paths; default: .
#   REGISTRY_TOKEN       a token of the registry. Otherwise an ID token is exchanged for one:
#   REGISTRY_ID_TOKEN    the ID token; or
#   REGISTRY_ID_TOKEN_FILE  the file that it is in (Kubernetes); or the one that GitHub Actions or
#                           Buildkite gives the job
#   REGISTRY_AUDIENCE    whom to request the ID token for; default: REGISTRY_URL
#   REGISTRY_DOTENV      a file for REGISTRY_MODEL_REVISION, _VERSION and _PATH. On GitHub they are
#                        the outputs of the step: revision, version and path
#
# All of it comes from the environment and is data: none of it is ever read as code. What the
# registry says is shown only where it cannot be taken for a command to the runner.
set -eu

fail() {
    printf 'registry: %s\n' "$*" >&2
    exit 1
}

# What a request answered with anything but 200 says is wrong.
problem() { # file with the answer
    detail=$(sed -nE 's/^\{"detail":"(([^"\\]|\\.)*)".*/\1/p' "$1" | head -n 1)
    printf '%s' "${detail:-the answer is none of a registry}"
}

fetch() { # what it is, file for the answer, curl's arguments...; more of those are read from stdin
    what=$1 file=$2
    shift 2
    : >"$file"
    status=$(curl --config - --silent --show-error --connect-timeout 10 --max-time 120 --retry 5 \
        --output "$file" --write-out '%{http_code}' "$@") || fail "$what: curl failed"
    [ "$status" = 200 ] || fail "$what: $(problem "$file") (HTTP $status)"
}

ask() { # what it is, file for the answer, path, curl's arguments...
    ask_what=$1 ask_file=$2 ask_path=$3
    shift 3
    # Not as an argument: everybody on the machine can read those.
    printf 'header = "Authorization: Bearer %s"\n' "$token" |
        fetch "$ask_what" "$ask_file" --get "$@" "$url$ask_path"
}

is_token() {
    case $1 in '' | *[!A-Za-z0-9._~+/=-]*) return 1 ;; esac
}

id_token() {
    if [ -n "${REGISTRY_ID_TOKEN:-}" ]; then
        printf '%s' "$REGISTRY_ID_TOKEN"
    elif [ -n "${REGISTRY_ID_TOKEN_FILE:-}" ]; then
        cat "$REGISTRY_ID_TOKEN_FILE"
    elif [ -n "${ACTIONS_ID_TOKEN_REQUEST_URL:-}" ]; then
        is_token "$ACTIONS_ID_TOKEN_REQUEST_TOKEN" || fail 'ACTIONS_ID_TOKEN_REQUEST_TOKEN is odd'
        printf 'header = "Authorization: bearer %s"\n' "$ACTIONS_ID_TOKEN_REQUEST_TOKEN" |
            fetch 'the ID token' "$work/id-token" --get --data-urlencode "audience=$audience" \
                "$ACTIONS_ID_TOKEN_REQUEST_URL" || exit 1
        sed -n 's/.*"value" *: *"\([A-Za-z0-9._-]*\)".*/\1/p' "$work/id-token"
    elif [ -n "${BUILDKITE_AGENT_ACCESS_TOKEN:-}" ] && command -v buildkite-agent >/dev/null; then
        buildkite-agent oidc request-token --audience "$audience"
    else
        fail 'no token: set REGISTRY_TOKEN, or let the job have an ID token (on GitHub:' \
            'permissions: id-token: write)'
    fi
}

mask() { # keeps a secret out of the log of GitHub's runner, which reads this line and hides it
    [ "${GITHUB_ACTIONS:-}" != true ] || printf '::add-mask::%s\n' "$1"
}

exchange() {
    proof=$(id_token) || exit 1
    is_token "$proof" || fail 'the ID token is none'
    mask "$proof"
    types=urn:ietf:params:oauth
    printf 'data-urlencode = "subject_token=%s"\n' "$proof" |
        fetch 'the exchange of the ID token' "$work/exchange" \
            --data-urlencode "grant_type=$types:grant-type:token-exchange" \
            --data-urlencode "subject_token_type=$types:token-type:id_token" \
            "$url/api/v1/token/exchange"
    token=$(sed -n 's/.*"access_token":"\([A-Za-z0-9._-]*\)".*/\1/p' "$work/exchange")
    mask "$token"
}

url=${REGISTRY_URL:-}
url=${url%/}
case $url in https://* | http://*) ;; *) fail 'set REGISTRY_URL to the URL of the registry' ;; esac
[ -n "${REGISTRY_REPOSITORY:-}" ] || fail 'set REGISTRY_REPOSITORY'
[ -n "${REGISTRY_NAME:-}" ] || fail 'set REGISTRY_NAME to the name of the artifact'
command -v md5sum >/dev/null || fail 'md5sum is not installed'
audience=${REGISTRY_AUDIENCE:-$url}
output=${REGISTRY_OUTPUT:-.}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

token=${REGISTRY_TOKEN:-}
[ -n "$token" ] || exchange
is_token "$token" || fail 'REGISTRY_TOKEN is none'

set -- --data-urlencode "repo=$REGISTRY_REPOSITORY" --data-urlencode "name=$REGISTRY_NAME"
[ -z "${REGISTRY_VERSION:-}" ] || set -- "$@" --data-urlencode "version=$REGISTRY_VERSION"
[ -z "${REGISTRY_STAGE:-}" ] || set -- "$@" --data-urlencode "stage=$REGISTRY_STAGE"
ask 'the model' "$work/receipt" /api/v1/resolve "$@" --header 'Accept: text/plain'

fact() { sed -n "s/^$1 \{1,\}\($2\)\$/\1/p" "$work/receipt" | head -n 1; }
receipt=$(fact receipt '[0-9a-f]\{64\}')
revision=$(fact revision '[0-9a-f]\{40,64\}')
version=$(fact version '[0-9A-Za-z.+-]\{1,\}')
path=$(fact path '.*')
[ -n "$receipt$revision" ] || fail 'the answer is none of a registry'

# The same receipt from here on: a stage that moves meanwhile does not mix two models.
ask 'the checksums' "$work/md5sums" /api/v1/md5sums --data-urlencode "receipt=$receipt"
case $output in /*) target=$output ;; *) target=./$output ;; esac # - and -x are names, too
mkdir -p "$target"
check() { (cd "$target" && md5sum -c "$work/md5sums") >"$work/checked" 2>&1; }
if check; then
    printf 'registry: all files are there already\n'
else
    ask 'the links' "$work/links" /api/v1/urls --data-urlencode "receipt=$receipt" \
        --header 'Accept: text/x-curl-config'
    parallel='--parallel --no-progress-meter'
    curl $parallel --version >/dev/null 2>&1 || parallel='' # before curl 7.67
    (cd "$target" && curl $parallel --silent --show-error --connect-timeout 10 --retry 5 \
        --config "$work/links") || fail 'a file cannot be downloaded'
    check || fail "a file is not what it should be: $(sed '/: OK$/d' "$work/checked" | head -n 1)"
fi

place=${output%/}/$path
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    printf 'revision=%s\nversion=%s\npath=%s\n' "$revision" "$version" "$place" >>"$GITHUB_OUTPUT"
fi
if [ -n "${REGISTRY_DOTENV:-}" ]; then
    printf 'REGISTRY_MODEL_%s\n' "REVISION=$revision" "VERSION=$version" "PATH=$place" \
        >"$REGISTRY_DOTENV"
fi
printf 'registry: %s %s of revision %s is in %s, and every checksum holds\n' \
    "$REGISTRY_NAME" "$version" "$revision" "$place"
