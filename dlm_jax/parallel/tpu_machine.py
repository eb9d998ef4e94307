"""Whether this machine has TPU chips, and what libtpu is told where it has none.

Only the standard library is imported, so that a command can look before JAX starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, MutableMapping
from pathlib import Path

_GOOGLE_PCI_VENDOR = "0x1ae0"
# What libtpu looks for, and complains about in many lines where nobody answers.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
# What JAX sets itself, when it is imported where no chip is.
_BY_JAX = ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY")


def on_tpu_machine(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this host has TPU chips, means to use them, and may ask the metadata server.

    Args:
        environment: variables of this process.
        root: of the file system.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if "TPU_SKIP_MDS_QUERY" in environment or (platforms and "tpu" not in platforms.split(",")):
        return False
    # Older chips are devices of their own, those from v5e on belong to vfio.
    devices = (*(root / "dev").glob("accel*"), *(root / "dev/vfio").glob("[0-9]*"))
    return bool(devices) and has_google_device(root)


def has_google_device(root: Path = Path("/")) -> bool:
    """Whether a device of the maker of TPUs is attached through PCI, which is where JAX looks."""
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(_first_line(file) == _GOOGLE_PCI_VENDOR for file in vendors)


def keep_libtpu_quiet(environment: MutableMapping[str, str], root: Path = Path("/")) -> None:
    """Spares a machine without TPUs, where libtpu is installed to plan with, its complaints.

    JAX asks it for devices in every process. Must precede the first use of a device, not the import
    of JAX; changes nothing where a variable says that there is a TPU, or a chip might be one.

    Args:
        environment: variables of this process.
        root: of the file system.
    """
    names = set(environment).difference(_BY_JAX)
    told = any(name.startswith(("TPU_", "MEGASCALE_", "JAX_FORCE_TPU")) for name in names)
    if told or importlib.util.find_spec("libtpu") is None or has_google_device(root):
        return
    environment.update(_QUIET)


def _first_line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
