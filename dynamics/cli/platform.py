"""Which platform JAX starts on, said before it is imported."""

import glob
import os

# Device files of accelerators: NVIDIA and AMD GPUs, TPUs (two generations of drivers).
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def quiet_without_accelerator() -> None:
    """Name the CPU where there is no accelerator and the user has said nothing.

    Where libtpu is installed to plan with, JAX would look for a TPU first: a second lost, and a page of warnings.
    """
    if "JAX_PLATFORMS" not in os.environ and not any(map(glob.glob, DEVICE_FILES)):
        os.environ["JAX_PLATFORMS"] = "cpu"
