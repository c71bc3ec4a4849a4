# Sourced by the scripts in this folder, with `set -euo pipefail`: they run in the checkout's root, have a temporary folder
# `$tmp`, and leave nothing behind.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
egg_info_before=$(compgen -G '*.egg-info' || true)
cleanup() {
    rm -rf "$tmp"
    # An editable install leaves its egg-info here. One that was here before belongs to somebody else.
    if [[ -z $egg_info_before ]]; then rm -rf ./*.egg-info; fi
}
trap cleanup EXIT

stage() { printf '\n=== [%4d s] %s\n' "$SECONDS" "$1"; }

# The oldest version of a package that pyproject.toml allows: `oldest triton`.
oldest() { sed -nE "s/^ *\"$1>=([0-9.]+).*/\1/p" pyproject.toml | grep .; }
