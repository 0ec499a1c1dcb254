#!/bin/sh
# A fake nvidia-smi with the real one's output in the state that /etc/fake-nvidia-smi names:
# good (the default), lost, mismatch or hang.
state=$(cat /etc/fake-nvidia-smi 2>/dev/null || echo good)
[ "$state" = hang ] && exec sleep 600
if [ "$state" = mismatch ]; then
  echo 'Failed to initialize NVML: Driver/library version mismatch'
  echo 'NVML library version: 550.163'
  exit 18
fi
if [ "$state" = lost ]; then
  echo 'Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU'
  exit 15
fi
case "$*" in
  *--query-gpu=*) echo '0, NVIDIA GeForce RTX 4090, 37, 9011, 24564, 54, 211.35, 550.163.01, 0x0000000000000004' ;;
  *--query-compute-apps=*) ;;
  *--list-gpus* | *-L*) echo 'GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-00000000-0000-0000-0000-000000000000)' ;;
esac
