"""The graphics devices of this machine: what they are, what is free on them, and why one cannot be used.

`inventory` looks once, `watch` regularly. What the system says is read from files below `HostView.root`; what
only a driver's library knows, a child process asks for: no such library is ever loaded here.
"""
