#!/usr/bin/env bash
# Runs everything that must hold: format, lints, documentation, all tests.
#
#   scripts/test.sh          installs what the tests need (Debian packages as root, Python packages into .venv), then runs
#   scripts/test.sh --full   the longest matrices too
#   scripts/test.sh --no-install   uses what is there; tests that miss something say so loudly and are skipped
#
# MOE_FIXTURES may name a folder of further, larger fixtures (see tests/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."

full=0 install=1
for arg in "$@"; do
  case "$arg" in
    --full) full=1 ;;
    --no-install) install=0 ;;
    -h|--help) sed -n '2,9p' "$0"; exit 0 ;;
    *) echo "scripts/test.sh: unknown argument '$arg' (try --help)" >&2; exit 2 ;;
  esac
done

say() { printf '\n== %s\n' "$*" >&2; }

if [ "$install" = 1 ]; then
  say "installing what the tests need"
  # A C++ compiler for the CUDA kernels' host harness, software Vulkan for the shaders, Chromium for the HTML page.
  packages=(g++ libvulkan1 mesa-vulkan-drivers vulkan-validationlayers chromium python3-venv)
  if [ "$full" = 1 ]; then
    # The kernels for aarch64, compiled and run under emulation.
    packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
    command -v rustup >/dev/null && rustup target add aarch64-unknown-linux-gnu
  fi
  missing=()
  if command -v dpkg-query >/dev/null; then
    for p in "${packages[@]}"; do
      dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
    done
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
      export DEBIAN_FRONTEND=noninteractive
      # An installation that was cut off before leaves dpkg refusing all others until it is finished.
      dpkg --configure -a
      apt-get update -qq
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
      echo "not root: please install ${missing[*]}; tests that need them are skipped" >&2
    fi
  fi
  # numpy and safetensors read back what we write; the NVRTC wheels compile the CUDA kernels without CUDA.
  if [ ! -x .venv/bin/python ]; then
    python3 -m venv .venv
  fi
  requirements=(-r scripts/test-requirements.txt)
  if [ "$full" = 1 ]; then
    requirements+=(-r scripts/test-requirements-full.txt)
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirements[@]}"
fi
if [ "$install" = 1 ] && command -v npm >/dev/null; then
  # OpenAI's client for Node; without it that test says that it is skipped.
  npm install --prefix tests/node --no-save --no-package-lock --silent openai || true
fi
if [ -x .venv/bin/python ]; then
  export MOE_PYTHON="$PWD/.venv/bin/python"
fi
export MOE_FULL=$full

say "format"
cargo fmt --all -- --check
say "lints"
cargo clippy --workspace --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
if rustc --print target-libdir --target wasm32-unknown-unknown >/dev/null 2>&1 \
  && [ -d "$(rustc --print target-libdir --target wasm32-unknown-unknown)" ]; then
  say "the graph crate for wasm32"
  cargo check --quiet -p moe-run-graph --target wasm32-unknown-unknown
else
  say "SKIPPED: wasm32 (rustup target add wasm32-unknown-unknown)"
fi
say "tests"
cargo test --workspace
if [ "$full" = 1 ]; then
  if [ -d "$(rustc --print target-libdir --target aarch64-unknown-linux-gnu)" ] \
    && command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null; then
    say "the CPU's kernels for aarch64, emulated"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
      CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu" \
      cargo test -p moe-run-cpu --lib --target aarch64-unknown-linux-gnu
  else
    say "SKIPPED: aarch64 (rustup target add aarch64-unknown-linux-gnu; gcc-aarch64-linux-gnu, qemu-user)"
  fi
fi
say "CUDA kernels: NVRTC's code and ptxas's table against the committed ones"
if [ "$install" = 1 ] || [ -d target/nvrtc/nvidia-cuda-nvcc-cu12-12.9.86 ]; then
  "${MOE_PYTHON:-python3}" scripts/nvrtc-check.py
else
  say "SKIPPED: NVRTC and ptxas are not in target/nvrtc (run without --no-install)"
fi
say "all tests passed"
