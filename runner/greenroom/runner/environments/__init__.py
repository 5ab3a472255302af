"""The installer alone: environments for the programs and packages that a program of a user's needs.

- `installer`, `async_installer`: what a program asks, for threads and for asyncio
- `requests`: what both ask in the same words
- `declaration`: what an environment is made of, from what a program says
- `installed`: an environment that is there, and how its programs are run
- `calls`, `streams`: one call from the question to the answer, and how far it is
- `host`: the actor, its builder and its journal on one folder
- `opening`: which installers of this process share one
- `errors`: what goes wrong
"""
