"""A tool in its own environment: installed once, then found on the disk.

python examples/tools.py ~/.myapp/envs
"""

from __future__ import annotations

import sys

from greenroom import GreenroomError, Installer


def main(home: str) -> None:
    with Installer(home) as installer:
        env = installer.ensure("black>=26", progress=print)  # at once, if it is there
        env.run("black", "--version")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except GreenroomError as error:
        sys.exit(str(error))
