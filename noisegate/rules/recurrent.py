"""Recurrent layers: those of torch, cells, SpeechBrain's modules.

Authors
 * The noisegate developers, 2026
"""

import inspect

import torch
from speechbrain.lobes.models import resepformer
from speechbrain.nnet import RNN

from noisegate.gate import bounded_sqrt
from noisegate.rules.base import Cost, LayerRule, inner, register, select


@register(torch.nn.GRUCell, torch.nn.LSTMCell, torch.nn.RNNCell)
class CellRule(LayerRule):
    """L layers and D directions of H units; a cell is one of each.

    ``MACs = positions G D H ((in + H) + (L - 1)(D H + H))``, where G is 3 for
    a GRU, 4 for an LSTM and 1 for a simple RNN. An LSTM may project what it
    puts out to P values: they take the place of H in the inner brackets, and
    D L P H are added.

    Role "hidden" are the units, of which each direction makes an output. No
    unit reads a closed one. Units at the edge fade without noise inside (the
    fused kernels leave no room for it) and with noise in the layer that reads
    the output.
    """

    family = inside = "rnn"
    masks = ("hidden",)

    @property
    def directions(self):
        """int : 1, or 2 if it is bidirectional."""
        return 2 if getattr(self.layer, "bidirectional", False) else 1

    @property
    def n_parts(self):
        """int : weight matrices of a unit, G."""
        parameter = next(self.layer.parameters())
        return parameter.shape[0] // self.layer.hidden_size

    @property
    def projected(self):
        """int : size of the projection of the units, or 0."""
        return getattr(self.layer, "proj_size", 0)

    def sizes(self):
        units = self.layer.hidden_size
        n_out = self.projected or units
        return {"in": self.layer.input_size, "out": n_out, "hidden": units}

    def values(self, args, kwargs):
        # What enters the state is tied to the units
        return list(zip(("in", "out"), [*args, *kwargs.values()]))

    def ports(self, role, index):
        if role != "out" or self.projected:
            return [(role, index)]
        return [(role, index.repeat(self.directions)), ("hidden", index)]

    def locked(self):
        if self.projected:
            return {"out": "projects its state"}
        return {}

    def _named(self, *starts):
        """Names and tensors of the parameters that start so."""
        return [
            (name, parameter)
            for name, parameter in self.layer.named_parameters()
            if name.startswith(starts)
        ]

    def _first(self):
        """Names of the weights that read the input."""
        names = [name for name, _ in self._named("weight_ih")]
        return [n for n in names if n == "weight_ih" or "_l0" in n]

    @property
    def reading(self):
        """torch.Tensor : see the base class."""
        weights = [getattr(self.layer, name) for name in self._first()]
        return torch.cat(weights).movedim(1, 0)

    def masked(self, weights, args, kwargs):
        like = next(self.layer.parameters())
        units = weights("hidden", self.layer.hidden_size, like)
        factor = bounded_sqrt(units)
        parameters = {
            name: parameter * factor
            for name, parameter in self._named("weight_hh")
        }
        first = self._first()
        for name, parameter in self._named("weight_ih"):
            if name not in first:
                parameters[name] = parameter * factor.repeat(self.directions)
        return weights.run(parameters, args, kwargs)

    def cut(self, role, index):
        layer = self.layer
        if role == "out":  # its outputs are its units
            return
        if role == "in":
            for name in self._first():
                select(layer, name, 1, index)
            layer.input_size = len(index)
        else:
            size, first = layer.hidden_size, self._first()
            parts = range(self.n_parts)
            rows = torch.cat([index + part * size for part in parts])
            below = torch.cat(
                [index + d * size for d in range(self.directions)]
            )
            for name, _ in self._named("weight", "bias"):
                select(layer, name, 0, rows)
                if name.startswith("weight_hh"):
                    select(layer, name, 1, index)
                elif name.startswith("weight_ih") and name not in first:
                    select(layer, name, 1, below)
            layer.hidden_size = len(index)

    def record(self, args, kwargs, output):
        return {"positions": output.numel() // output.shape[-1]}

    def cost(self, widths, calls):
        n_in, units = widths["in"], widths["hidden"]
        n_more = getattr(self.layer, "num_layers", 1) - 1
        directions = self.directions
        n_out = self.projected or units
        per_unit = (n_in + n_out) + n_more * (directions * n_out + n_out)
        weights = self.n_parts * directions * units * per_unit
        weights += directions * (n_more + 1) * self.projected * units
        biases = 2 * self.n_parts * directions * units * (n_more + 1)
        elements = calls["positions"] * directions * n_out * (n_more + 1)
        params = weights + biases * self.layer.bias
        return Cost(calls["positions"] * weights, params, elements)


@register(torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)
class RecurrentRule(CellRule):
    """GRU, LSTM and simple RNN: as a cell, over time."""

    fused = True

    def cut(self, role, index):
        super().cut(role, index)
        self.layer.flatten_parameters()  # cuDNN wants them side by side


class SpeechBrainRecurrentRule(LayerRule):
    """SpeechBrain's recurrent modules."""

    inside = "rnn"

    def renew(self):
        module = self.layer
        if hasattr(module, "rnn_cells"):
            module.hidden_size = module.rnn_cells[0].hidden_size


class StackRule(SpeechBrainRecurrentRule):
    """Takes the states of its layers for tensors of one size."""

    stacks = True


register(
    *(
        kind
        for _, kind in inspect.getmembers(RNN, inspect.isclass)
        if kind.__module__ == RNN.__name__
    )
)(SpeechBrainRecurrentRule)
register(RNN.RNNCell, RNN.GRUCell, RNN.LSTMCell)(StackRule)


@register(RNN.LiGRU, RNN.SLiGRU)
class LiGRURule(StackRule):
    """A stack of layers."""

    def renew(self):
        self.layer.hidden_size = inner(self.layer.rnn[0].u, "in_features")


@register(RNN.LiGRU_Layer, RNN.SLiGRU_Layer)
class LiGRULayerRule(SpeechBrainRecurrentRule):
    """A layer of such a stack, with masks of dropout."""

    def renew(self):
        layer, size = self.layer, inner(self.layer.u, "in_features")
        if layer.hidden_size != size:
            layer.hidden_size = size
            layer.drop_masks = layer.drop_masks[:, :size]


@register(RNN.AttentionalRNNDecoder)
class AttentionalDecoderRule(SpeechBrainRecurrentRule):
    """A stack of cells with attention."""

    def renew(self):
        module = self.layer
        module.hidden_size = module.rnn.rnn_cells[0].hidden_size
        last = getattr(module.attn, "mlp_out", None) or module.attn.value_linear
        module.attn_dim = inner(last, "out_features")


@register(resepformer.SegLSTM)
class SegLSTMRule(LayerRule):
    """SpeechBrain's module around an LSTM over segments."""

    def renew(self):
        self.layer.hidden_size = self.layer.lstm.hidden_size
