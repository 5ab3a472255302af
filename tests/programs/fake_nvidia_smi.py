"""A program that answers as `nvidia-smi` does, of devices that lie in the folder `NVIDIA_FAKE_FOLDER`.

`devices.json` lists them: index, uuid, name, total and used by others (MiB). Each `user-<pid>.json` is an
engine that holds memory for as long as it lives. With a file `mute` there, what processes hold is not told,
as in a container; with a file `broken` nothing is; with a file `updated` the driver is another than the
library, until the next start of the machine.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    folder = Path(os.environ["NVIDIA_FAKE_FOLDER"])
    if (folder / "updated").exists():
        sys.exit("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95")
    if (folder / "broken").exists():
        sys.exit("Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error")
    if len(sys.argv) == 1:
        print("| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |")
        return
    (query,) = [word for word in sys.argv[1:] if word.startswith("--query")]
    if "--format=csv,noheader,nounits" not in sys.argv:
        sys.exit("only csv,noheader,nounits is known here")
    what, _, fields = query.partition("=")
    devices = json.loads((folder / "devices.json").read_text())
    users = [
        one for file in folder.glob("user-*.json") if alive((one := json.loads(file.read_text()))["pid"])
    ]
    if what == "--query-gpu":
        rows = []
        for device in devices:
            held = sum(one["size"] for one in users if one["device"] == str(device["index"]))
            row = {
                **device,
                "memory.total": device["total"],
                "memory.used": device["others"] + held,
                "driver_version": "580.65.06",
                "pci.bus_id": f"00000000:{device['index'] + 1:02}:00.0",
                "mig.mode.current": "[N/A]",
                "compute_cap": "8.9",
            }
            rows.append(row)
    else:
        ids = {str(device["index"]): device["uuid"] for device in devices}
        mute = (folder / "mute").exists()
        rows = [
            {
                "pid": one["pid"],
                "gpu_uuid": ids[one["device"]],
                "used_memory": "[N/A]" if mute else one["size"],
            }
            for one in users
        ]
    for row in rows:
        print(", ".join(str(row[field]) for field in fields.split(",")))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


main()
