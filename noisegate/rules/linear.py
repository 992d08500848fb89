"""Linear layers and embeddings.

Authors
 * The noisegate developers, 2026
"""

import torch

from noisegate.rules.base import Cost, LayerRule, register, select


@register(torch.nn.Linear)
class LinearRule(LayerRule):
    """``MACs = positions in out``."""

    def sizes(self):
        return {"in": self.layer.in_features, "out": self.layer.out_features}

    def cost(self, widths, calls):
        n_in, n_out = widths["in"], widths["out"]
        macs = calls["positions"] * n_in * n_out
        params = n_in * n_out + n_out * (self.layer.bias is not None)
        return Cost(macs, params, calls["positions"] * n_out)


@register(torch.nn.Embedding)
class EmbeddingRule(LayerRule):
    """Makes features of indices: parameters only."""

    n_values = 0
    weight_axes = {"out": 1}

    def sizes(self):
        return {"out": self.layer.embedding_dim}

    def cut(self, role, index):
        select(self.layer, "weight", 1, index)
        self.layer.embedding_dim = len(index)

    def cost(self, widths, calls):
        n_out = widths["out"]
        params = self.layer.num_embeddings * n_out
        return Cost(0, params, calls["positions"] * n_out)
