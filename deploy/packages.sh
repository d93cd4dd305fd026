#!/usr/bin/env bash
# Installs the Debian packages that building, running and testing SageQuant need; quiet and quick when they are there.
# Sourced or run by deploy/quickstart and tests/run. Needs root or sudo only when something is missing.
set -euo pipefail

SAGE_PACKAGES=(
  g++ cmake ninja-build ccache pkg-config git ca-certificates python3 python3-venv unzip
  libabsl-dev libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libspdlog-dev prometheus-cpp-dev nlohmann-json3-dev libcli11-dev libcpp-httplib-dev libyaml-cpp-dev libsqlite3-dev
  libssl-dev libpcre2-dev libutf8proc-dev libgtest-dev libgmock-dev
)

sage_install_packages() {
  local missing=() package
  for package in "${SAGE_PACKAGES[@]}" "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    return 0
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "need root or sudo to install: ${missing[*]}" >&2; return 1; }
    sudo=(sudo)
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Configures and builds one preset: sage_build release [targets...]
sage_build() {
  local preset=$1
  shift
  local here
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  (cd "$here" && cmake --preset "$preset" >"build-$preset.log.tmp" 2>&1) || {
    cat "$here/build-$preset.log.tmp"
    rm -f "$here/build-$preset.log.tmp"
    return 1
  }
  # What one clone has compiled serves another on the same machine.
  export CCACHE_BASEDIR="$here" CCACHE_NOHASHDIR=1
  mkdir -p "$here/build/$preset"
  mv "$here/build-$preset.log.tmp" "$here/build/$preset/configure.log"
  cmake --build "$here/build/$preset" -- -j "${SAGE_JOBS:-$(nproc)}" "$@"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  sage_install_packages "$@"
fi
