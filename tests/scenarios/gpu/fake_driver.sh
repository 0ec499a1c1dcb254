#!/bin/sh
# Installs empty packages with the names and versions of Debian 13's NVIDIA driver, and writes the role's records of
# their installation.
# Argument: the kernel release for which they install a fake module.
set -eu
kernel=$1
version=550.163.01
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
libraries="libcuda1/usr/lib/$(uname -m)-linux-gnu"

modules="nvidia-kernel-dkms/usr/lib/modules/$kernel"

# /etc/modprobe.d and modprobe belong to the package kmod, which every machine with a driver has. No container can load a module.
mkdir -p "$work/$libraries" "$work/$modules/updates/dkms" "$work/$modules/build" "$work/$modules/kernel" \
  "$work/nvidia-kernel-dkms/etc/modprobe.d" "$work/nvidia-kernel-dkms/usr/sbin"
printf '#!/bin/sh\necho "fake modprobe: no container can load a module" >&2\nexit 1\n' >"$work/nvidia-kernel-dkms/usr/sbin/modprobe"
chmod 0755 "$work/nvidia-kernel-dkms/usr/sbin/modprobe"
touch "$work/$libraries/libcuda.so.$version" "$work/$modules/updates/dkms/nvidia-current.ko"
ln -s "libcuda.so.$version" "$work/$libraries/libcuda.so.1"

set -- nvidia-kernel-dkms libcuda1 libnvidia-cfg1 nvidia-smi nvidia-persistenced
for name in "$@"; do
  mkdir -p "$work/$name/DEBIAN"
  printf 'Package: %s\nVersion: %s-2\nArchitecture: %s\nMaintainer: nobody <nobody@example.net>\nDescription: fake, only a name\n' \
    "$name" "$version" "$(dpkg --print-architecture)" >"$work/$name/DEBIAN/control"
  dpkg-deb --root-owner-group --build "$work/$name" "$work/$name.deb" >/dev/null
done
dpkg --install "$work"/*.deb >/dev/null

# The role's records, as if it had installed the packages.
mkdir -p /etc/bedplate/gpu_driver
for record in requested installed; do
  printf '%s\n' "$@" >"/etc/bedplate/gpu_driver/$record"
done
