"""`python -m segserve`."""

from segserve.cli import main

if __name__ == "__main__":
    main()
