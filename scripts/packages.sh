# Sourced by the setup scripts: messages, and packages of the distribution.
# shellcheck shell=bash

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# Installs packages with apt-get, as root or through sudo, and says so first.
install_packages() {
    local as_root=()
    command -v apt-get >/dev/null ||
        fail "missing: $*. This script installs with apt-get (Debian, Ubuntu); here, install them yourself and run it again"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "missing: $*. Run as root or install sudo, or: apt-get install $*"
        as_root=(sudo)
    fi
    say "installing from the distribution: $* (${as_root[*]:+sudo }apt-get)"
    "${as_root[@]}" apt-get update -qq >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}
