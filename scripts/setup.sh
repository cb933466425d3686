#!/usr/bin/env bash
# Installs what `make demo` and `make up` need beyond git, make, curl, a C compiler and Rust: PostgreSQL and jq.
# Does nothing, quickly, when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

command -v cargo >/dev/null || fail "no cargo found: install Rust with rustup (https://rustup.rs); rust-toolchain.toml picks the version"
command -v cc >/dev/null || fail "no C compiler found: install one (on Debian and Ubuntu: apt-get install build-essential)"
command -v setpriv >/dev/null || fail "no setpriv found: it is part of util-linux"

has_postgresql() {
    local bin
    for bin in /usr/lib/postgresql/*/bin; do
        [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ] && [ -x "$bin/pg_dump" ] && [ -x "$bin/psql" ] && return 0
    done
    return 1
}

missing=()
has_postgresql || missing+=(postgresql postgresql-client)
command -v jq >/dev/null || missing+=(jq)
if [ ${#missing[@]} -gt 0 ]; then
    has_postgresql || say "the distribution's package may also start a server of its own on port 5432; it is not used here"
    install_packages "${missing[@]}"
fi
has_postgresql || fail "PostgreSQL's programs are not in /usr/lib/postgresql/*/bin, although its packages are installed"
