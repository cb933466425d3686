#!/usr/bin/env bash
# Builds the content of the pg-client layer: a pg_dump that runs on Amazon Linux 2023 with nothing but
# glibc (<= 2.34), and the CA bundle of Amazon RDS.
#
#   infra/pg-client-layer/build.sh [--major 18] [--arch arm64|x86_64] [--out DIR]
#
# Needs: bash, curl, tar, make, perl, and zig (0.12-0.14; `pip install ziglang` is enough). PostgreSQL 17 and later
# also need bison and flex. No container; it builds for either architecture on either.
#
# Sources come from their publishers and are checked against the digests below. A local copy (a tarball or
# an unpacked directory) can stand in for each: PG_SOURCE, OPENSSL_SOURCE, ZLIB_SOURCE, ZSTD_SOURCE, and
# RDS_CA_BUNDLE for the certificates. Others: PG_VERSION (a release without a digest here: the publisher's
# .sha256 file is used), ZIG, JOBS, WORK_DIR (build tree and downloads, kept between runs).
set -euo pipefail

# Newest releases with the digest of the publisher's tarball (sha256).
pg_release() {
  case $1 in
    15) echo "15.20 30e65cbbb771a39b553ed2df7e65622e65647aed55dbc19bd0fe853ff0a08442" ;;
    17) echo "17.11 dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979" ;;
    18) echo "18.6 555610c24d53e4316da5b7d3fc25c279d96856d5e0e23ee308c328c5fa881d9f" ;;
    *) return 1 ;;
  esac
}
openssl_version=3.5.7
openssl_sha256=a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8
zlib_version=1.3.1
zlib_sha256=9a93b2b7dfdac77ceba5a558a580e74667dd6fede4585b91eefb60f03b72df23
zstd_version=1.5.7
zstd_sha256=eb33e51f49a15e023950cd7825ca74a4a2b43db8354825ac24fc1b7ee09e6fa3
ca_bundle_url=https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem
glibc=2.34 # what Amazon Linux 2023, and so provided.al2023, has

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
major=18
arch=arm64
out=$here/dist

fail() { echo "build.sh: $*" >&2; exit 1; }
say() { echo "build.sh: $*" >&2; }

while [ $# -gt 0 ]; do
  case $1 in
    --major) major=${2:?}; shift 2 ;;
    --arch) arch=${2:?}; shift 2 ;;
    --out) out=${2:?}; shift 2 ;;
    -h | --help) sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
    *) fail "unknown argument $1 (see --help)" ;;
  esac
done

case $arch in
  arm64) triple=aarch64-linux-gnu openssl_target=linux-aarch64 ;;
  x86_64) triple=x86_64-linux-gnu openssl_target=linux-x86_64 ;;
  *) fail "--arch is arm64 or x86_64, not $arch" ;;
esac

for tool in curl tar make perl; do
  command -v "$tool" >/dev/null || fail "$tool is not installed"
done
if [ "$major" -ge 17 ]; then
  for tool in bison flex; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (PostgreSQL 17 and later need it)"
  done
fi
if [ -z "${ZIG:-}" ]; then
  if command -v zig >/dev/null; then ZIG=zig
  elif python3 -c 'import ziglang' 2>/dev/null; then ZIG='python3 -m ziglang'
  else fail "zig not found: pip install ziglang, or set ZIG"
  fi
fi

case $out in /*) ;; *) out=$PWD/$out ;; esac
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
work=${WORK_DIR:-$repository/target/pg-client-layer}
downloads=$work/downloads
tree=$work/$arch # libraries that every major shares, and the tools
prefix=$tree/prefix
mkdir -p "$downloads" "$tree/tools" "$prefix"

sha256_of() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1; }

# download URL SHA256: prints the path of the checked file.
download() {
  local file=$downloads/${1##*/}
  if [ ! -f "$file" ]; then
    say "downloading $1"
    curl --fail --silent --show-error --location --retry 3 --output "$file.part" "$1" || fail "cannot download $1"
    mv "$file.part" "$file"
  fi
  if [ "$(sha256_of "$file")" != "$2" ]; then
    fail "$file has another digest than expected ($2); delete it and try again"
  fi
  echo "$file"
}

# unpack SOURCE DIRECTORY: a tarball's content, or a copy of a directory, without its own top directory.
unpack() {
  [ -e "$1" ] || fail "$1 does not exist"
  rm -rf "$2"
  mkdir -p "$2"
  if [ -d "$1" ]; then cp -R "$1/." "$2/"; else tar -xf "$1" -C "$2" --strip-components=1; fi
}

# One command each, because makefiles and configure scripts expect the path of a tool.
tool() {
  printf '#!/bin/sh\nexec %s "$@"\n' "$2" >"$tree/tools/$1"
  chmod +x "$tree/tools/$1"
}
# zig adds a sanitizer that aborts on undefined behaviour unless told not to.
tool cc "$ZIG cc -target $triple.$glibc -fno-sanitize=undefined"
tool ar "$ZIG ar"
tool ranlib "$ZIG ranlib"
cc=$tree/tools/cc
ar=$tree/tools/ar
ranlib=$tree/tools/ranlib
optimise="-O2 -fPIC"

# run NAME COMMAND…: the output goes to a log that is shown only when the command fails.
run() {
  local log=$tree/$1.log
  shift
  "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2; fail "failed: $* (whole log: $log)"; }
}

build_zlib() {
  local source=${ZLIB_SOURCE:-}
  [ -n "$source" ] || source=$(download "https://github.com/madler/zlib/releases/download/v$zlib_version/zlib-$zlib_version.tar.gz" "$zlib_sha256")
  unpack "$source" "$tree/zlib"
  cd "$tree/zlib"
  run zlib-configure env CC="$cc" AR="$ar" RANLIB="$ranlib" CFLAGS="$optimise" CHOST="$triple" ./configure --static --prefix="$prefix"
  run zlib make -j "$jobs" libz.a
  mkdir -p "$prefix/lib" "$prefix/include"
  cp libz.a "$prefix/lib/"
  cp zlib.h zconf.h "$prefix/include/"
}

build_zstd() {
  local source=${ZSTD_SOURCE:-}
  [ -n "$source" ] || source=$(download "https://github.com/facebook/zstd/releases/download/v$zstd_version/zstd-$zstd_version.tar.gz" "$zstd_sha256")
  unpack "$source" "$tree/zstd"
  run zstd make -C "$tree/zstd/lib" -j "$jobs" libzstd.a CC="$cc" AR="$ar" RANLIB="$ranlib" CFLAGS="$optimise" ZSTD_LEGACY_SUPPORT=0
  cp "$tree/zstd/lib/libzstd.a" "$prefix/lib/"
  cp "$tree/zstd/lib/"zstd*.h "$prefix/include/"
}

build_openssl() {
  local source=${OPENSSL_SOURCE:-}
  [ -n "$source" ] || source=$(download "https://github.com/openssl/openssl/releases/download/openssl-$openssl_version/openssl-$openssl_version.tar.gz" "$openssl_sha256")
  unpack "$source" "$tree/openssl"
  cd "$tree/openssl"
  # --openssldir is where Amazon Linux keeps its own certificates, for sslrootcert=system.
  run openssl-configure env CC="$cc" AR="$ar" RANLIB="$ranlib" CFLAGS="$optimise" ./Configure "$openssl_target" \
    --prefix="$prefix" --libdir=lib --openssldir=/etc/pki/tls \
    no-shared no-apps no-tests no-docs no-module no-legacy no-engine no-dso no-quic no-ssl3 no-comp no-srp no-psk no-ts no-cmp no-ct
  run openssl make -j "$jobs" build_libs
  run openssl-install make install_dev
}

# The libraries are built once for an architecture; the stamp holds what they were built from.
libraries() {
  local wanted="openssl=${OPENSSL_SOURCE:-$openssl_version} zlib=${ZLIB_SOURCE:-$zlib_version} zstd=${ZSTD_SOURCE:-$zstd_version} glibc=$glibc"
  if [ -f "$prefix/stamp" ] && [ "$(cat "$prefix/stamp")" = "$wanted" ]; then return; fi
  rm -f "$prefix/stamp"
  say "building zlib, zstd and OpenSSL for $arch (a few minutes, once)"
  (build_zlib)
  (build_zstd)
  (build_openssl)
  echo "$wanted" >"$prefix/stamp"
}

build_pg_dump() {
  local source=${PG_SOURCE:-} version digest release
  if [ -z "$source" ]; then
    if [ -n "${PG_VERSION:-}" ]; then
      version=$PG_VERSION
      [ "${version%%.*}" = "$major" ] || fail "PG_VERSION=$version is not of major $major"
      digest=$(curl --fail --silent --show-error --location "https://ftp.postgresql.org/pub/source/v$version/postgresql-$version.tar.bz2.sha256" | cut -d' ' -f1) \
        || fail "cannot fetch the digest of PostgreSQL $version"
    else
      release=$(pg_release "$major") || fail "no digest for PostgreSQL $major here: set PG_VERSION=$major.N, or PG_SOURCE"
      version=${release% *}
      digest=${release#* }
    fi
    source=$(download "https://ftp.postgresql.org/pub/source/v$version/postgresql-$version.tar.bz2" "$digest")
  fi
  local pg=$tree/postgresql-$major
  say "building pg_dump $major for $arch"
  unpack "$source" "$pg"
  cd "$pg"
  # Always as a cross build, so that both architectures take the same path.
  run postgresql-configure env CC="$cc" AR="$ar" RANLIB="$ranlib" \
    CFLAGS="-O2" CPPFLAGS="-I$prefix/include" LDFLAGS="-L$prefix/lib" \
    ZSTD_CFLAGS="-I$prefix/include" ZSTD_LIBS="-L$prefix/lib -lzstd" \
    ./configure --build="$(sh config/config.guess)" --host="$triple" --prefix=/opt \
    --with-ssl=openssl --with-zstd --without-readline --without-icu --disable-rpath
  run postgresql-headers make -C src/backend generated-headers
  run postgresql-common make -j "$jobs" -C src/common all
  run postgresql-port make -j "$jobs" -C src/port all
  run postgresql-libpq make -j "$jobs" -C src/interfaces/libpq all-static-lib
  run postgresql-fe-utils make -j "$jobs" -C src/fe_utils all
  # Only libpq.a exists, so -lpq is a static link, which wants the archives that the shared library would
  # contain; -o skips the targets that would build it.
  # shellcheck disable=SC2016 # make's variables
  run postgresql-pg-dump make -j "$jobs" -C src/bin/pg_dump pg_dump LDFLAGS_EX=-s \
    'libpq_pgport=$(libpq) -L$(top_builddir)/src/common -lpgcommon_shlib -L$(top_builddir)/src/port -lpgport_shlib' \
    NO_GENERATED_HEADERS=yes NO_TEMP_INSTALL=yes -o submake-libpq -o submake-libpgport -o submake-libpgfeutils
}

# The layer's content: under /opt in the function.
assemble() {
  local binary=$tree/postgresql-$major/src/bin/pg_dump/pg_dump bundle=${RDS_CA_BUNDLE:-} newest
  newest=$(grep -ao 'GLIBC_2\.[0-9][0-9]*' "$binary" | sort -t. -k2 -n -u | tail -n 1)
  [ "${newest#GLIBC_2.}" -le "${glibc#2.}" ] || fail "pg_dump needs $newest, but the function has GLIBC_$glibc"
  if [ -z "$bundle" ]; then
    # Changes whenever AWS adds a region or rotates an authority, so there is no digest to hold it against; TLS vouches for it.
    bundle=$downloads/global-bundle.pem
    say "downloading $ca_bundle_url"
    curl --fail --silent --show-error --location --retry 3 --output "$bundle" "$ca_bundle_url" || fail "cannot download $ca_bundle_url"
  fi
  grep -q 'BEGIN CERTIFICATE' "$bundle" || fail "$bundle holds no certificate"
  rm -rf "$out"
  mkdir -p "$out/bin" "$out/rds-ca"
  cp "$binary" "$out/bin/pg_dump"
  cp "$bundle" "$out/rds-ca/global-bundle.pem"
  chmod 755 "$out/bin/pg_dump"
  chmod 644 "$out/rds-ca/global-bundle.pem"
  if [ "$(uname -s)" = Linux ] && { [ "$arch" = "$(uname -m)" ] || [ "$arch-$(uname -m)" = arm64-aarch64 ]; }; then
    "$out/bin/pg_dump" --version | grep -q " $major\." || fail "pg_dump is not of major $major: $("$out/bin/pg_dump" --version)"
  fi
  say "$out: pg_dump $major for $arch, $(du -k "$out/bin/pg_dump" | cut -f1) KiB, needs glibc >= ${newest#GLIBC_}; $(grep -c 'BEGIN CERTIFICATE' "$bundle") certificates"
}

libraries
(build_pg_dump)
assemble
