"""``python -m noisegate``: the command."""

from noisegate.cli import main

main()
