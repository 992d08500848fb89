"""Small configurations of the models of SpeechBrain, and of three more.

Each entry of :data:`ZOO` builds a model and the arguments of its forward,
all positional. What a recipe puts behind a model (output layers, a decoder)
is part of it where the model alone would end in its hidden features.

Authors
 * The noisegate developers, 2026
"""

from benchmarks import (  # noqa: F401
    zoo_classification,
    zoo_recognition,
    zoo_separation,
    zoo_synthesis,
)
from benchmarks.zoo_entries import ZOO, build  # noqa: F401
