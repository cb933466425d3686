# Sourced by setup-tests.sh: pg_dump, pg_restore and psql of major 17 with zstd and lz4, into .tools/postgresql/17/client. They are
# Debian trixie's, run with trixie's own loader and libraries, so nothing of the system is replaced or added to.
# shellcheck shell=bash disable=SC2154 # tools, stamps and work are setup-tests.sh's

# The suite is pinned, and not the version: a suite keeps only its newest. Raise the number when this script makes something else.
client_17='Debian trixie, layout 1'

# has_zstd PG_DUMP: it checks the compression before it connects, so that what it says of the missing socket tells.
has_zstd() {
    (LC_ALL=C "$1" -Fc --compress=zstd:1 -h /nonexistent 2>&1 || true) | grep -q 'connection to server'
}

# The mirror of Debian itself that apt is configured to use.
debian_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' '$2 == "main" && ($1 == "Debian" || $3 ~ /\/debian\/?$/) { print $3; exit }'
}

# For want of trixie's: says which program of the system can do it, or fails.
system_client() {
    local tool major
    for tool in /usr/lib/postgresql/*/bin/pg_dump $(type -P pg_dump || true); do
        [ -x "$tool" ] || continue
        major=$("$tool" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
        if [ "$major" -lt 16 ] || ! has_zstd "$tool"; then continue; fi
        if [[ $tool != /usr/lib/postgresql/* && ! -e $tools/postgresql/$major/client ]]; then
            mkdir -p "$tools/postgresql/$major/client"
            ln -s "$(dirname "$tool")" "$tools/postgresql/$major/client/bin"
        fi
        say "$1: no client 17 from Debian trixie. The system's has zstd and will do: $tool, $major"
        return
    done
    fail "$1: no client 17 from Debian trixie, and no pg_dump of 16 or later with zstd on this system.
The tests that need one will be refused. Install postgresql-client-16 or later of your distribution and run this again"
}

install_client_17() {
    local folder=$work/client-17 target=$tools/postgresql/17/client mirror keyring loader tool programs
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { system_client 'no apt here'; return; }
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || { system_client 'apt has no Debian mirror configured'; return; }
    keyring=$(find /usr/share/keyrings -name 'debian-archive-keyring.[gp]*' | sort | head -n 1)
    [ -n "$keyring" ] || { system_client 'debian-archive-keyring is not installed'; return; }

    # An apt that knows no installed package, and so fetches every library, and whose every file is in this folder.
    mkdir -p "$folder"/{apt/lists/partial,apt/archives/partial,apt/parts,root,client/bin,client/programs,client/libraries}
    touch "$folder/apt/status"
    cat >"$folder/apt/trixie.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Targets: Packages
Signed-By: $keyring
SOURCES
    # Read last, so that it also undoes what the system's configuration runs after each step.
    cat >"$folder/apt/apt.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "$folder/apt/trixie.sources";
Dir::Etc::sourceparts "$folder/apt/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$folder/apt/parts";
Dir::State "$folder/apt";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt";
Dir::Cache::archives "$folder/apt/archives";
Dir::Log "$folder/apt";
APT::Sandbox::User "$(id -un)";
APT::Default-Release "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
CONF
    if ! {
        apt-get -c "$folder/apt/apt.conf" -qq update &&
            # All that these libraries need comes along. The client and readline come alone, or they would bring perl and dpkg.
            apt-get -c "$folder/apt/apt.conf" -qq --yes --download-only --no-install-recommends install \
                libpq5 libtinfo6 libzstd1 liblz4-1 zlib1g &&
            (cd "$folder/apt/archives" && apt-get -c "$folder/apt/apt.conf" -qq download postgresql-client-17 libreadline8t64)
    } >"$folder/apt/log" 2>&1 </dev/null; then
        cat "$folder/apt/log" >&2
        system_client "apt could not fetch Debian trixie's packages"
        return
    fi
    for tool in "$folder"/apt/archives/*.deb; do dpkg-deb -x "$tool" "$folder/root"; done

    # Of all that, only what the programs load.
    programs=$folder/root/usr/lib/postgresql/17/bin
    loader=$(find "$folder/root/usr/lib" -name 'ld-linux*.so.*' -type f | head -n 1)
    for tool in pg_dump pg_restore psql; do
        cp "$programs/$tool" "$folder/client/programs/"
        env -u LD_PRELOAD -u LD_LIBRARY_PATH "$loader" --library-path "$(dirname "$loader")" --list "$programs/$tool" \
            >"$folder/$tool.list" || true
        while read -r library; do
            # A library of the system would be one that trixie's packages lack.
            [[ $library = "$folder/root/"* ]] || fail "$tool of trixie needs a library that was not fetched: $library"
            cp -L "$library" "$folder/client/libraries/"
        done < <(sed -nE 's/^.* => (.*) \(0x.*/\1/p; s/^.* => not found/& /p' "$folder/$tool.list" | grep -v '/ld-linux')
    done
    cp -L "$loader" "$folder/client/libraries/"
    # Not named "lib": callers put bin/../lib into LD_LIBRARY_PATH, and the system's own shell must not load these.
    for tool in pg_dump pg_restore psql; do
        cat >"$folder/client/bin/$tool" <<WRAPPER
#!/bin/sh
unset LD_LIBRARY_PATH LD_PRELOAD
self=\$0
[ ! -L "\$self" ] || self=\$(readlink -f -- "\$self")
case \$self in */*) here=\${self%/*}/.. ;; *) here=.. ;; esac
exec "\$here/libraries/$(basename "$loader")" --argv0 "\$self" --library-path "\$here/libraries" "\$here/programs/$tool" "\$@"
WRAPPER
        chmod +x "$folder/client/bin/$tool"
        "$folder/client/bin/$tool" --version | grep -q ' 17\.' || fail "$tool of trixie does not run"
    done
    has_zstd "$folder/client/bin/pg_dump" || fail "trixie's pg_dump has no zstd"
    mkdir -p "$(dirname "$target")"
    rm -rf "$target"
    mv "$folder/client" "$target"
    echo "$client_17" >"$stamps/client-17"
    say "PostgreSQL 17 client, with zstd: $("$target/bin/pg_dump" --version)"
}
