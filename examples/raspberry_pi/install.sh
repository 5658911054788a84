#!/bin/bash
# Install the TrajSyn agent on this device, or update it. Run as root; running it again is safe.
#
#   sudo ./install.sh trajsyn-0.1.0-py3-none-manylinux_2_27_aarch64.whl
#
# Makes: the user `trajsyn`, /opt/trajsyn/venv, /var/lib/trajsyn, and the systemd unit
# (not started before the device has its device.toml). Only pip uses the network; with a folder of
# wheels beside the first one it does not: PIP_NO_INDEX=1 PIP_FIND_LINKS=/path/to/wheels
set -euo pipefail
umask 022  # the service is another user and must read what root installs

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT=/opt/trajsyn
STATE=/var/lib/trajsyn
UNIT=trajsyn-agent.service

say() { echo "install.sh: $*"; }
fail() { echo "install.sh: $*" >&2; exit 2; }

[[ $# -eq 1 && -f ${1:-} ]] || fail "name the wheel: sudo $0 trajsyn-VERSION-py3-none-manylinux_2_27_aarch64.whl"
WHEEL="$(realpath "$1")"
[[ "$WHEEL" == *.whl ]] || fail "$1 is no wheel"
[[ $EUID -eq 0 ]] || fail "run it as root: sudo $0 $1"
PYTHON="$(command -v "${PYTHON:-python3}")" || fail "python3 is missing: apt install python3 python3-venv"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "Python 3.11 or newer is needed (Debian 12 has it); this is $("$PYTHON" --version); PYTHON= names another"
[[ "$(uname -m)" == x86_64 || "$(getconf LONG_BIT)" == 64 ]] \
    || fail "a 64-bit system is needed; flash the 64-bit image of Raspberry Pi OS"

if ! id trajsyn >/dev/null 2>&1; then
    say "creating the user trajsyn"
    useradd --system --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin trajsyn
fi
install -d -m 0750 -o trajsyn -g trajsyn "$STATE"
install -d -m 0755 "$ROOT"

if [[ ! -x "$ROOT/venv/bin/pip" ]]; then
    say "making $ROOT/venv"
    "$PYTHON" -m venv "$ROOT/venv" || fail "python3-venv is missing: apt install python3-venv"
fi
say "installing $(basename "$WHEEL") and what it needs"
"$ROOT/venv/bin/pip" install --quiet --disable-pip-version-check "$WHEEL"
# The same version again: pip would leave the old code where it is.
"$ROOT/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$WHEEL"
"$ROOT/venv/bin/edge-sdk" --version

install -m 0644 "$HERE/README.md" "$ROOT/README.md"
install -m 0644 "$HERE/use_the_model.py" "$ROOT/use_the_model.py"
install -m 0644 "$HERE/$UNIT" "/etc/systemd/system/$UNIT"
if [[ ! -d /run/systemd/system ]]; then
    say "systemd does not run here; the unit is installed and not enabled"
    exit 0
fi
systemctl daemon-reload
if [[ -f "$STATE/device/device.toml" ]]; then
    systemctl enable --quiet "$UNIT"
    systemctl restart "$UNIT"
    say "the agent runs; its log: journalctl -u $UNIT"
else
    say "done. Next: sudo -u trajsyn $ROOT/venv/bin/edge-sdk init $STATE/device ... (README.md)"
fi
