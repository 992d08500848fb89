"""What noisegate knows of layers: one class for each family.

Everything else that a model is made of is observed by
:mod:`noisegate.probe`. The families register their rules.
"""

from noisegate.rules import attention, conv, features, linear, norm, recurrent
from noisegate.rules.base import Cost, LayerRule, register, rule_of, select
from noisegate.rules.norm import NormRule

__all__ = ["Cost", "LayerRule", "NormRule", "register", "rule_of", "select"]
