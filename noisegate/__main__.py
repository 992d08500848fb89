"""``python -m noisegate``: the command."""

from noisegate.cli import main

if __name__ == "__main__":
    main()
