#!/usr/bin/env bash
# Makes target/guest/vmlinux and target/guest/initrd.gz: Debian's kernel, its virtio and ext4 modules, busybox, mke2fs,
# and the script init.sh as the first process. Needs apt-get, dpkg-deb, cpio, xz and busybox-static; downloads 70 MB.
# What is there already for the same kernel and script is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${CARGO_TARGET_DIR:-$here/../../target}/guest
mkdir -p "$out"
cd "$out"

# The number in the package's name moves with each update of Debian.
newest() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }
package=$(newest)
[ -n "$package" ] || { apt-get update -qq && package=$(newest); }
[ -n "$package" ] || { echo "guest.sh: apt knows no linux-image-amd64" >&2; exit 1; }
stamp="$package $(cksum <"$here/guest.sh") $(cksum <"$here/init.sh")"
if [ -f vmlinux ] && [ "$(cat stamp 2>/dev/null)" = "$stamp" ]; then
  echo "$package is here"
  exit 0
fi

rm -rf stamp tree root
download() { apt-get download -q -o APT::Sandbox::User=root "$package"; }
# Lists that are old name files that are gone.
download || { apt-get update -qq && download; }
mkdir tree
dpkg-deb -x "$package"_*.deb tree
rm "$package"_*.deb

# A bzImage unpacks itself, slowly under emulation: take the kernel out of it (Documentation/x86/boot.rst).
image=tree/boot/vmlinuz-${package#linux-image-}
number() { od -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
start=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
# The last four bytes are the unpacked size.
length=$(($(number 588 4) - 4))
dd if="$image" iflag=skip_bytes,count_bytes skip="$start" count="$length" bs=1M status=none | xz -dc >vmlinux

mkdir -p root/{bin,sbin,dev,proc,sys,mnt,tmp,modules,lib64}
cp "$(command -v busybox)" root/bin/busybox
cp "$here/init.sh" root/init
chmod +x root/init
cp /sbin/mke2fs root/sbin/
ldd /sbin/mke2fs | grep -o '/[^ ]*' | while read -r library; do
  mkdir -p "root$(dirname "$library")"
  cp -L "$library" "root$library"
done
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
  crc16 crc32c_generic libcrc32c mbcache jbd2 ext4; do
  find tree/lib/modules -name "$module.ko" -exec cp {} root/modules/ \; | head -n 1
done
(cd root && find . | cpio -o -H newc --quiet | gzip -1) >initrd.gz
rm -rf tree root
echo "$stamp" >stamp
echo "made $out/vmlinux and initrd.gz of $package"
