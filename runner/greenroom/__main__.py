"""`python -m greenroom` is the command line."""

from greenroom.runner.cli.__main__ import main

if __name__ == "__main__":
    main()
