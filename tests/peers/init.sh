#!/bin/busybox sh
# The guest's only process: proves that the disk /dev/vda keeps what is written to it, and says so on the console.
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tracefs none /sys/kernel/tracing
trace=/sys/kernel/tracing

say() { echo "LOWZONE $*" >/dev/console; }
end() {
  say "$@"
  poweroff -f
}
load() { for module in "$@"; do insmod "/modules/$module.ko" || end "FAILED insmod $module"; done; }

# virtio_ring comes before virtio.
load virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci
load crc16 crc32c_generic libcrc32c mbcache jbd2 ext4
echo 65536 >$trace/buffer_size_kb
echo 1 >$trace/events/swiotlb/swiotlb_bounced/enable
load virtio_blk
n=0
until [ -b /dev/vda ]; do
  n=$((n + 1))
  [ $n -lt 300 ] || end "FAILED no /dev/vda"
  sleep 0.1
done

sum() { md5sum | cut -d ' ' -f 1; }
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
wanted=$(sum </tmp/data)
dd if=/tmp/data of=/dev/vda bs=4k oflag=direct 2>/dev/null || end "FAILED dd write"
small=$(dd if=/dev/vda bs=4k count=2048 iflag=direct 2>/dev/null | sum)
large=$(dd if=/dev/vda bs=1M count=8 iflag=direct 2>/dev/null | sum)
[ "$small" = "$wanted" ] && [ "$large" = "$wanted" ] && say "VERIFY direct $wanted"

/sbin/mke2fs -q -t ext4 /dev/vda || end "FAILED mke2fs"
mount -t ext4 /dev/vda /mnt || end "FAILED mount"
cp /tmp/data /mnt/data
sync
echo 3 >/proc/sys/vm/drop_caches
[ "$(sum </mnt/data)" = "$wanted" ] && say "VERIFY ext4 $wanted"
umount /mnt

device=$(basename "$(readlink -f /sys/block/vda/device)")
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
[ ! -b /dev/vda ] || end "FAILED unbind"
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
mount -t ext4 /dev/vda /mnt || end "FAILED mount after bind"
[ "$(sum </mnt/data)" = "$wanted" ] && say "VERIFY rebind $wanted"
umount /mnt

say "BOUNCED $(grep -c swiotlb_bounced: $trace/trace)"
end "END"
