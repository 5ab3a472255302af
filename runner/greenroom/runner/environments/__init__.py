"""The installer on its own: environments for tools and packages that other programs need.

- `installer`, `async_installer`: the installers, for threads and for asyncio
- `requests`: the methods that both installers share
- `declaration`: what an environment is made of, from the arguments of `ensure`
- `installed`: an installed environment, and how to run its programs
- `calls`, `streams`: one call of `ensure`, and its progress
- `host`: the actor, its builder and its journal in one folder
- `opening`: shares one host among the installers of this process
- `errors`: the exceptions
"""
