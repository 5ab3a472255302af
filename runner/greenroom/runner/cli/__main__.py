"""`python -m greenroom.runner.cli`: how a client starts its daemon, whatever its own name is."""

from greenroom.runner.cli.main import main

if __name__ == "__main__":
    main()
