"""Learn the layer sizes of SpeechBrain models while they train."""

from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

__all__ = ["__version__"]
