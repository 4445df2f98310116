#!/usr/bin/env bash
# Restores microVMs of a real Firecracker from snapshots, with their memory filled by
# firsttouchd, by Firecracker's own example handlers, and by the kernel; and prints how
# that went. On demand: nothing here belongs to ./bazelw test. Needs root and /dev/kvm.
#
#   tests/firecracker/run.sh FIRECRACKER [rounds]
#
# FIRECRACKER is a folder of its source, which is built where that was not done yet (its
# crates come from crates.io; some minutes), or a folder with the programs `firecracker`,
# `uffd_on_demand_handler` and `uffd_fault_all_handler`. In the environment:
#   MICRO_HTTP   a folder with the source of firecracker-microvm/micro-http, where
#                cargo cannot have it from GitHub
#   TOOLCHAIN    of rustup, instead of the one that Firecracker names
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
if [[ $# -lt 1 || ! -d "$1" ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 64
fi
firecracker="$(cd "$1" && pwd)"
rounds="${2:-7}"
for device in /dev/kvm /dev/userfaultfd; do
  [[ -r "$device" ]] || { echo "run.sh: $device cannot be opened" >&2; exit 1; }
done

programs="$firecracker"
if [[ -f "$firecracker/Cargo.toml" ]]; then
  # gnu, since musl needs a toolchain of its own; without seccomp filters then.
  target=x86_64-unknown-linux-gnu
  programs="$firecracker/build/cargo_target/$target/release"
  config=()
  if [[ -n "${MICRO_HTTP:-}" ]]; then
    config=(--config "patch.'https://github.com/firecracker-microvm/micro-http'.micro_http.path='$MICRO_HTTP'")
  fi
  [[ -z "${TOOLCHAIN:-}" ]] || export RUSTUP_TOOLCHAIN="$TOOLCHAIN"
  # What is measured is the kernel's work and the servers': the VMM need not be as
  # fast as it can.
  (cd "$firecracker" && CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 \
    RUSTFLAGS='' cargo build --release --target "$target" "${config[@]}" \
    -p firecracker --bin firecracker --example uffd_on_demand_handler \
    --example uffd_fault_all_handler)
fi
examples="$programs"
[[ ! -d "$programs/examples" ]] || examples="$programs/examples"

if [[ -z "${FIRSTTOUCH_BIN:-}" ]]; then
  (cd "$root" && ./bazelw build -c opt //tools/firsttouchd //tools/imagetool)
  FIRSTTOUCH_BIN="$root/bazel-bin/tools"
fi

folder="$(mktemp -d "${TMPDIR:-/tmp}/firsttouch-firecracker.XXXXXX")"
gcc -O2 -ffreestanding -nostdlib -static -mno-red-zone -mno-sse -fno-pic -no-pie \
  -mcmodel=small -fno-stack-protector -fno-asynchronous-unwind-tables \
  -fno-tree-loop-distribute-patterns -Wall -Wl,-T,"$here/guest/guest.ld" \
  -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments \
  -o "$folder/guest" "$here/guest/start.S" "$here/guest/guest.c"

echo "$("$programs/firecracker" --version | head -1), Linux $(uname -r)," \
  "$(nproc) cores"
exec python3 "$here/measure.py" --firecracker "$programs/firecracker" \
  --examples "$examples" --firsttouchd "$FIRSTTOUCH_BIN/firsttouchd/firsttouchd" \
  --imagetool "$FIRSTTOUCH_BIN/imagetool/imagetool" --guest "$folder/guest" \
  --folder "$folder" --rounds "$rounds"
