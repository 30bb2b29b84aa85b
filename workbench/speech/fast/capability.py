"""What a GPU can do, and which way "exact" and "fast" therefore take on it."""

import torch

MIN_AMPERE = (8, 0)  # compute capability of the A100, the first GPU with bfloat16 and TF32 on tensor cores

MIN_HOPPER = (9, 0)  # of the H100, the first GPU on which a kernel can start before the one before it ends


def can_start_early(device: torch.device) -> bool:
    """Return whether a kernel can start early (CUDA's programmatic dependent launch)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_HOPPER


LARGE_SHARED_MEMORY = 200_000  # bytes a block may use; an H100 has 232,448, most GPUs for games 101,376


def has_large_shared_memory(device: torch.device) -> bool:
    """Return whether kernels may keep so much on the chip as on an H100; also where no GPU is asked."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin >= LARGE_SHARED_MEMORY


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16; GPUs before Ampere only imitate it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= MIN_AMPERE


def dtype_on(device: torch.device, dtype: str, wanted: str) -> str:
    """Return the type of a stage's weights on a device.

    Parameters
    ----------
    device : torch.device
    dtype : str
        Of the stage's option, such as "float32".
    wanted : str
        What `Options.dtype_of` makes of it: "bfloat16" for "fast".

    Returns
    -------
    str
        `wanted`, or `dtype` where "fast" asks for bfloat16 of a GPU that has none.
    """
    return wanted if wanted != "bfloat16" or has_bfloat16(device) else dtype


def way_taken(device: torch.device, compute: str) -> str:
    """Say which way a run takes on a GPU that lacks what `compute` uses; empty for any other run."""
    if compute == "eager" or device.type != "cuda" or has_bfloat16(device):
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"{compute}: by torch with CUDA graphs, without kernels of this project, and float32 stays float32: "
        f"this GPU (compute capability {major}.{minor}) has neither bfloat16 nor TF32, which begin with 8.0"
    )
