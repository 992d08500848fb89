"""Attention, and SpeechBrain's Transformer layers around it.

Authors
 * The noisegate developers, 2026
"""

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoderLayer,
)
from speechbrain.nnet.attention import (
    PositionalwiseFeedForward,
    RelPosMHAXL,
    RoPEMHA,
)

from noisegate.gate import bounded_sqrt
from noisegate.rules.base import Cost, LayerRule, register, select

_NAMES = ("query", "key", "value")


class AttentionRule(LayerRule):
    """What all attention layers have in common."""

    family = "attention"

    def sizes(self):
        out = self.layer.out_proj.out_features
        n_in = out
        if getattr(self.layer, "in_proj_weight", None) is not None:
            n_in = self.layer.in_proj_weight.shape[1]
        return {"in": n_in, "out": out}

    def values(self, args, kwargs):
        given = [*args[:3], *(kwargs[name] for name in _NAMES[len(args) :])]
        return [("in", value) for value in given]

    def gated(self, gate, args, kwargs):
        """See the base class: equal queries, keys, values get one noise."""
        seen, gated = {}, []
        for _, x in self.values(args, kwargs):
            # Transposed views of one tensor are told by where they begin
            first, y = seen.setdefault((x.data_ptr(), x.shape), (x, None))
            if y is None:
                y = gate(x)
                seen[x.data_ptr(), x.shape] = x, y
            # Gradients add up in the order of the plain model if it is open
            gated.append(x if y is first else y)
        n_given = min(3, len(args))
        named = dict(zip(_NAMES[n_given:], gated[n_given:]))
        return (*gated[:n_given], *args[n_given:]), {**kwargs, **named}

    def map_output(self, function, output):
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        return function(output)

    @property
    def reading(self):
        """torch.Tensor : see the base class."""
        return self.layer.in_proj_weight.movedim(1, 0)

    def cut(self, role, index):
        if role == "in":
            select(self.layer, "in_proj_weight", 1, index)
            return
        select(self.layer.out_proj, "weight", 0, index)
        select(self.layer.out_proj, "bias", 0, index)
        self.layer.out_proj.out_features = len(index)

    def record(self, args, kwargs, output):
        (_, query), (_, key), _ = self.values(args, kwargs)
        first = getattr(self.layer, "batch_first", True) or query.dim() == 2
        n_keys = key.shape[-2] if first else key.shape[0]
        queries, keys = (x.numel() // x.shape[-1] for x in (query, key))
        return {"queries": queries, "keys": keys, "pairs": queries * n_keys}


@register(torch.nn.MultiheadAttention)
class MultiheadRule(AttentionRule):
    """Of model width E: ``MACs = 2 queries E E + 2 keys E E + 2 pairs E``.

    Heads stay; each narrows with the model width (role "heads"). Where keys
    and values have widths of their own, nothing narrows.
    """

    masks = ("heads",)

    @property
    def granularity(self):
        """int : integer model widths are multiples of the heads."""
        return self.layer.num_heads

    def sizes(self):
        sizes, layer = super().sizes(), self.layer
        if layer.in_proj_weight is None:
            sizes.update(key=layer.kdim, value=layer.vdim)
        return sizes

    def values(self, args, kwargs):
        values = super().values(args, kwargs)
        if self.layer.in_proj_weight is None:
            roles = ("in", "key", "value")
            return [(role, x) for role, (_, x) in zip(roles, values)]
        return values

    @property
    def n_blocks(self):
        """int : each feature read and made: one attribute has their number."""
        return self.layer.embed_dim

    def ports(self, role, index):
        return [(role, index)] + [("heads", index)] * (role == "in")

    def refuses(self, role, whole):
        whole = whole and self.layer.in_proj_weight is not None
        if role in ("in", "key", "value") and not whole:
            return "does not read it as it is"

    def masked(self, weights, args, kwargs):
        layer = self.layer
        rows = bounded_sqrt(weights.tied("heads", layer.head_dim))
        rows = rows.repeat(3 * layer.num_heads).to(layer.in_proj_weight.dtype)
        parameters = {"in_proj_weight": layer.in_proj_weight * rows[:, None]}
        if layer.in_proj_bias is not None:
            parameters["in_proj_bias"] = layer.in_proj_bias * rows
        return weights.run(parameters, args, kwargs)

    def cut(self, role, index):
        """See the base class: each head keeps its first dimensions."""
        if role != "heads":
            return super().cut(role, index)
        layer = self.layer
        heads, full = layer.num_heads, layer.head_dim
        size = len(index) // heads
        first = torch.arange(size, device=index.device)
        inner = torch.cat([first + head * full for head in range(heads)])
        rows = torch.cat([inner + part * heads * full for part in range(3)])
        select(layer, "in_proj_weight", 0, rows)
        select(layer, "in_proj_bias", 0, rows)
        select(layer.out_proj, "weight", 1, inner)
        layer.out_proj.in_features = len(inner)
        with torch.no_grad():
            # The smaller layer divides by sqrt(size), training by sqrt(full)
            scale = (size / full) ** 0.5
            layer.in_proj_weight[: len(inner)] *= scale
            if layer.in_proj_bias is not None:
                layer.in_proj_bias[: len(inner)] *= scale
        layer.head_dim = size
        layer.embed_dim = layer.kdim = layer.vdim = len(inner)

    def cost(self, widths, calls):
        n_in, n_out = widths["in"], widths["out"]
        queries, keys, pairs = (calls[k] for k in ("queries", "keys", "pairs"))
        n_read = widths.get("key", n_in) + widths.get("value", n_in)
        macs = (2 * queries * n_in + keys * n_read + 2 * pairs) * n_out
        biases = 4 * n_out * (self.layer.in_proj_bias is not None)
        elements = 2 * (queries + keys) * n_out + pairs * self.layer.num_heads
        return Cost(macs, (2 * n_in + n_read) * n_out + biases, elements)


@register(RoPEMHA)
class SpeechBrainAttentionRule(AttentionRule):
    """SpeechBrain's own: heads may have another width than the model."""

    def sizes(self):
        for name, x in self.layer.named_children():
            if name in ("out_proj", "linear_pos") and not hasattr(x, "weight"):
                return {}  # LoRA around it: what is inside is looked at
        return {**super().sizes(), "heads": self.layer.head_dim}

    def record(self, args, kwargs, output):
        calls = super().record(args, kwargs, output)
        return {**calls, "offsets": 0, "pairs_offsets": 0}

    def cost(self, widths, calls):
        n_in, n_out = widths["in"], widths["out"]
        layer, queries, keys = self.layer, calls["queries"], calls["keys"]
        inner = layer.num_heads * widths["heads"]
        in_macs = (queries + 2 * keys) * n_in * inner
        out_macs = queries * inner * n_out
        offsets = calls["offsets"] * layer.embed_dim * inner
        products = (2 * calls["pairs"] + calls["pairs_offsets"]) * inner
        params = 3 * n_in * inner + inner * n_out + n_out
        if calls["offsets"]:
            params = params + layer.embed_dim * inner + 2 * inner
        elements = (queries + 2 * keys) * inner + queries * n_out
        elements = elements + calls["pairs"] * layer.num_heads
        macs = in_macs + out_macs + offsets + products
        return Cost(macs, params, elements)


@register(RelPosMHAXL)
class RelativeAttentionRule(SpeechBrainAttentionRule):
    """Heads have a width of their own: role "heads"."""

    masks = ("heads",)

    def inner_groups(self):
        layer = self.layer
        other = layer.vbias or not hasattr(layer, "in_proj_weight")
        reason = "has values of another form" if other else None
        return [("heads", layer.head_dim, reason)]

    def masked(self, weights, args, kwargs):
        layer = self.layer
        weight = layer.in_proj_weight
        factor = bounded_sqrt(weights("heads", layer.head_dim, weight))
        # Queries, keys and values of a head lie side by side
        rows = factor.repeat(3 * layer.num_heads)
        biases = factor.repeat(layer.num_heads).view(-1, layer.num_heads)
        parameters = {
            "in_proj_weight": weight * rows[:, None],
            "pos_bias_u": layer.pos_bias_u * biases,
            "pos_bias_v": layer.pos_bias_v * biases,
        }
        return weights.run(parameters, args, kwargs)

    def cut(self, role, index):
        """See the base class: keeps some dimensions of each head."""
        if role != "heads":
            return super().cut(role, index)
        layer = self.layer
        heads, full = layer.num_heads, layer.head_dim
        head = torch.arange(heads, device=index.device)[:, None]
        inner = (head * full + index).flatten()
        parts = torch.cat([index + part * full for part in range(3)])
        rows = (head * 3 * full + parts).flatten()
        select(layer, "in_proj_weight", 0, rows)
        select(layer.linear_pos, "weight", 0, inner)
        select(layer.out_proj, "weight", 1, inner)
        layer.linear_pos.out_features = layer.out_proj.in_features = len(inner)
        for name in ("pos_bias_u", "pos_bias_v"):
            # The layer reads its memory as (heads, dimensions)
            bias = getattr(layer, name)
            kept = bias.detach().view(heads, full)[:, index].reshape(-1, heads)
            setattr(layer, name, torch.nn.Parameter(kept, bias.requires_grad))
        layer.head_dim = layer.vhead_dim = len(index)

    def record(self, args, kwargs, output):
        calls = super().record(args, kwargs, output)
        positions = args[3] if len(args) > 3 else kwargs["pos_embs"]
        calls["offsets"] = positions.numel() // positions.shape[-1]
        calls["pairs_offsets"] = calls["queries"] * calls["offsets"]
        return calls


@register(torch.nn.TransformerEncoder)
class TorchEncoderRule(LayerRule):
    """Packs frames, if it is not told otherwise: padded ones are zeros then."""

    def renew(self):
        self.layer.use_nested_tensor = False


@register(torch.nn.Transformer)
class TorchTransformerRule(LayerRule):
    """Refuses features that are not as many as it was built for."""

    def renew(self):
        for part in self.layer.modules():
            self.layer.d_model = getattr(part, "embed_dim", self.layer.d_model)


@register(PositionalwiseFeedForward)
class FeedForwardRule(LayerRule):
    """The feed-forward block of a Transformer or Conformer."""

    inside = "ffn"


@register(TransformerEncoderLayer)
class EncoderLayerRule(LayerRule):
    """SpeechBrain's Transformer encoder layer."""

    named_part = "pos_ffn"
