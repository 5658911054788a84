"""`python -m server_toolkit` is `server-toolkit`: what `torchrun -m` needs."""

from server_toolkit.cli import main

if __name__ == "__main__":
    main()
