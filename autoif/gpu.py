"""The GPUs of this machine, as torch sees them."""

import os
import warnings
from pathlib import Path

from autoif.files import UserError

# NVIDIA's driver, AMD's, and the NVIDIA driver of Windows under WSL2
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/usr/lib/wsl/lib/libcuda.so.1")
CONTEXT = 1e9  # bytes that a program takes of a GPU before it has a tensor there


def memory() -> list[float]:
    """Bytes of each GPU; none without one, or where the environment says to do without.

    UserError where a GPU is there and torch cannot use it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    drivers = [driver for driver in DRIVERS if Path(driver).exists()]
    if hidden or os.environ.get("DS_ACCELERATOR") == "cpu" or not drivers:
        return []  # torch takes seconds to say the same
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its reason stands in the error below
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(
            f"{drivers[0]} is there, and torch {torch.__version__} cannot use a GPU: {refusal()}; "
            "update the driver (CUDA 13's torch wants NVIDIA's 580 or later), install torch's "
            "build for CUDA 12.6 (cu126), or do without: CUDA_VISIBLE_DEVICES="
        )
    return [float(torch.cuda.get_device_properties(n).total_memory) for n in range(count)]


def host() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def refusal() -> str:
    """Why torch cannot use a GPU, in its own words."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # a driver; a torch that knows no GPU
        return str(error).split(". ")[0].strip()
    return "it finds none"


def free_share() -> float:
    """The share of the fullest GPU that another program could still take."""
    import torch

    sizes = map(torch.cuda.mem_get_info, range(torch.cuda.device_count()))
    return min((free - CONTEXT) / total for free, total in sizes)


if __name__ == "__main__":
    # in a process of its own, since looking takes a context on every GPU
    print(free_share())
