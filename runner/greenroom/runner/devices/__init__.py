"""The graphics devices of this machine: what they are, what is free on them, and why one cannot be used.

What the system says is read from files below `HostView.root`; what only a driver's library knows, a child
process asks for: no such library is ever loaded here.

- `inventory`: looks once; `found`: what it found
- `watch`: looks regularly; `continuity`: what one look means after another
- `problems`: why a device cannot compute, and what to do
- `visible`: environment variables that choose devices
- `host_view`: what the probes see of the machine; `containers`: whether it is a container
- `pci`, `drm`: the kernel's lists: of controllers on the bus, and of devices with its own drivers
- `nvidia`, `nvidia_smi`, `jetson`: NVIDIA's cards, by library or by program; its boards
- `amd`, `apple`, `intel`: the devices of the others
- `vulkan`: what Vulkan's drivers offer, on all makes of devices
- `children`: child processes that ask drivers; `nvml_child`, `vulkan_child`: their programs
"""
