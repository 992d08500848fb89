"""Cost of a model as a function of its widths, and the loss that bounds it.

One multiply-accumulate (MAC) is one multiplication and one addition; FLOPs
are 2 x MACs. Counted: linear and convolutional layers, recurrences, attention
(projections and inner products), the mel filterbank. Not counted: biases,
activations, normalizations, the FFT.

One formula per layer type serves real-valued widths (the loss) and integer
widths (the report); at integer widths it equals what
``torch.utils.flop_counter.FlopCounterMode`` counts on the cut model.

Authors
 * The noisegate developers, 2026
"""

import math

import torch

from noisegate.groups import FEATURES


def linear_cost(layer, n_in, n_out, calls):
    """Cost of a Linear layer.

    Arguments
    ---------
    layer : torch.nn.Linear
        The layer, for what does not depend on the widths.
    n_in : int or torch.Tensor
        Number of input features.
    n_out : int or torch.Tensor
        Number of output features.
    calls : dict
        "positions": number of vectors that pass the layer.

    Returns
    -------
    tuple
        MACs, parameters and output elements (activations).
    """
    macs = calls["positions"] * n_in * n_out
    params = n_in * n_out + n_out * (layer.bias is not None)
    return macs, params, calls["positions"] * n_out


def conv_cost(layer, n_in, n_out, calls):
    """Cost of a Conv1d or Conv2d layer; arguments as :func:`linear_cost`.

    Arguments
    ---------
    layer : torch.nn.Conv1d or torch.nn.Conv2d
        The layer.
    n_in : int or torch.Tensor
        Number of input channels.
    n_out : int or torch.Tensor
        Number of output channels.
    calls : dict
        "positions": number of output positions.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    weights = n_in * n_out * math.prod(layer.kernel_size)
    params = weights + n_out * (layer.bias is not None)
    return calls["positions"] * weights, params, calls["positions"] * n_out


def gru_cost(layer, n_in, n_out, calls):
    """Cost of a GRU of L layers and D directions with H units.

    ``MACs = positions 3 D H ((n_in + H) + (L - 1)(D H + H))``

    Arguments
    ---------
    layer : torch.nn.GRU
        The layer.
    n_in : int or torch.Tensor
        Number of input features.
    n_out : int or torch.Tensor
        Number of units H.
    calls : dict
        "positions": number of frames.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    directions = 2 if layer.bidirectional else 1
    per_unit = (n_in + n_out) + (layer.num_layers - 1) * (
        directions * n_out + n_out
    )
    weights = 3 * directions * n_out * per_unit
    biases = 6 * directions * n_out * layer.num_layers * layer.bias
    elements = calls["positions"] * directions * n_out * layer.num_layers
    return calls["positions"] * weights, weights + biases, elements


def attention_cost(layer, n_in, n_out, calls):
    """Cost of self-attention of model width E: projections, inner products.

    ``MACs = positions 4 E E + 2 pairs E``

    Arguments
    ---------
    layer : torch.nn.MultiheadAttention
        The layer.
    n_in : int or torch.Tensor
        Model width E.
    n_out : int or torch.Tensor
        The same.
    calls : dict
        "positions": number of frames; "pairs": of query-key pairs.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    weights = 4 * n_in * n_out
    macs = calls["positions"] * weights + 2 * calls["pairs"] * n_out
    biases = 4 * n_out * (layer.in_proj_bias is not None)
    elements = 4 * calls["positions"] * n_out + calls["pairs"] * layer.num_heads
    return macs, weights + biases, elements


def norm_cost(layer, n_in, n_out, calls):
    """Cost of a normalization: parameters only.

    Arguments
    ---------
    layer : torch.nn.Module
        BatchNorm or LayerNorm.
    n_in : int or torch.Tensor
        Number of channels.
    n_out : int or torch.Tensor
        The same.
    calls : dict
        "positions": number of vectors.

    Returns
    -------
    tuple
        0 MACs, parameters, activations.
    """
    tensors = sum(p is not None for p in (layer.weight, layer.bias))
    return 0, tensors * n_in, calls["positions"] * n_in


def fbank_cost(features, n_in, n_out, calls):
    """Cost of a mel filterbank: spectrum times filter matrix.

    Arguments
    ---------
    features : speechbrain.lobes.features.Fbank
        The front-end.
    n_in : int
        Number of frequency bins.
    n_out : int or torch.Tensor
        Number of mel bands.
    calls : dict
        "positions": number of frames.

    Returns
    -------
    tuple
        MACs, no parameters (the filters are fixed), activations.
    """
    positions = calls["positions"]
    return positions * n_in * n_out, 0, positions * n_out


_FORMULAS = (
    (torch.nn.Linear, linear_cost),
    ((torch.nn.Conv1d, torch.nn.Conv2d), conv_cost),
    (torch.nn.GRU, gru_cost),
    (torch.nn.MultiheadAttention, attention_cost),
    (
        (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm),
        norm_cost,
    ),
)


def _norm_size(layer):
    """Number of features that a normalization normalizes."""
    if isinstance(layer, torch.nn.LayerNorm):
        return math.prod(layer.normalized_shape)
    return layer.num_features


def _record(layer, output):
    """What a formula needs to know of one forward pass."""
    if isinstance(output, tuple):
        output = output[0]
    if isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d)):
        channels = layer.out_channels
    elif isinstance(
        layer, (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)
    ):
        channels = _norm_size(layer)
    else:
        channels = output.shape[-1]
    return {"positions": output.numel() // channels}


class CostModel:
    """MACs, parameters and activations as functions of the widths.

    Arguments
    ---------
    model : torch.nn.Module
        The model at full width.
    groups : list of noisegate.groups.Group
        Its channel groups.
    example : torch.Tensor
        Example input, a waveform (1, samples) if there is a front-end.
    seconds : float
        Duration of the example: costs are quoted per second of audio.
    features : speechbrain.lobes.features.Fbank
        The front-end, optional.
    """

    def __init__(self, model, groups, example, seconds, features=None):
        self.seconds = seconds
        self.sizes = {group.name: group.size for group in groups}
        ports = {}
        for group in groups:
            for port in group.ports:
                factor = 1
                if port.role == "in" and port.index is not None:
                    factor = len(port.index) // group.size
                elif port.role == "norm":
                    layer = model.get_submodule(port.layer)
                    factor = _norm_size(layer) // group.size
                ports[port.layer, port.role] = (group.name, factor)
        self._layers = []  # (path, layer, formula, in, out, calls)
        calls = self._run(model, example, features)
        if features is not None:
            frames = {"positions": calls.pop(FEATURES)}
            bins = features.compute_fbanks.n_stft
            self._layers.append(
                (FEATURES, features, fbank_cost, bins, (FEATURES, 1), frames)
            )
        for path, (layer, formula, recorded) in calls.items():
            # Layers in no group, e.g. behind a fixed axis, keep their size
            read = ports.get((path, "in")) or ports.get((path, "norm"))
            read = read or layer.weight.shape[1]
            made = ports.get((path, "out")) or read
            self._layers.append((path, layer, formula, read, made, recorded))
        self._full_macs = self.macs()  # asked for at every step

    def _run(self, model, example, features):
        """One evaluation pass that records what the formulas need."""
        calls, handles = {}, []

        def watch(path, layer, formula):
            def hook(module, args, output):
                recorded = _record(module, output)
                if isinstance(module, torch.nn.MultiheadAttention):
                    frames = args[0].shape[0]
                    recorded["pairs"] = recorded["positions"] * frames
                if path in calls:  # the layer is used more than once
                    for key, value in calls[path][2].items():
                        recorded[key] += value
                calls[path] = (layer, formula, recorded)

            handles.append(layer.register_forward_hook(hook))

        for path, layer in model.named_modules():
            for kinds, formula in _FORMULAS:
                if isinstance(layer, kinds):
                    watch(path, layer, formula)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                if features is not None:
                    example = features(example)
                    calls[FEATURES] = example.numel() // example.shape[-1]
                model(example)
        finally:
            model.train(training)
            for handle in handles:
                handle.remove()
        return calls

    def _by_layer(self, widths):
        """Yields path and (MACs, parameters, activations) of each layer."""
        widths = {**self.sizes, **(widths or {})}

        def resolve(width):
            if isinstance(width, int):
                return width
            name, factor = width
            return widths[name] * factor

        for path, layer, formula, read, made, calls in self._layers:
            yield path, formula(layer, resolve(read), resolve(made), calls)

    def _total(self, which, widths):
        return sum(cost[which] for _, cost in self._by_layer(widths))

    def macs(self, widths=None):
        """Returns the MACs of the example.

        Arguments
        ---------
        widths : dict of str to (int or torch.Tensor)
            Widths by group; groups left out have their full size.

        Returns
        -------
        int or torch.Tensor
            Exact for integers, differentiable for tensors.
        """
        return self._total(0, widths)

    def macs_per_second(self, widths=None):
        """Returns the MACs per second of audio, rounded.

        Arguments
        ---------
        widths : dict of str to int
            See :meth:`macs`.

        Returns
        -------
        int
        """
        return round(float(self.macs(widths)) / self.seconds)

    def macs_by_layer(self, widths=None):
        """Returns the MACs per second of audio of each layer.

        Arguments
        ---------
        widths : dict of str to int
            See :meth:`macs`.

        Returns
        -------
        dict of str to int
        """
        return {
            path: round(macs / self.seconds)
            for path, (macs, _, _) in self._by_layer(widths)
            if macs
        }

    def params(self, widths=None):
        """Returns the number of parameters of the model.

        Arguments
        ---------
        widths : dict of str to (int or torch.Tensor)
            See :meth:`macs`.

        Returns
        -------
        int or torch.Tensor
        """
        return self._total(1, widths)

    def activations(self, widths=None):
        """Returns the number of elements that all layers put out.

        Arguments
        ---------
        widths : dict of str to (int or torch.Tensor)
            See :meth:`macs`.

        Returns
        -------
        int or torch.Tensor
            For the whole example.
        """
        return self._total(2, widths)

    def ratio(self, widths):
        """Returns MACs relative to the full widths.

        Arguments
        ---------
        widths : dict of str to (int or torch.Tensor)
            See :meth:`macs`.

        Returns
        -------
        float or torch.Tensor
            In (0, 1].
        """
        return self.macs(widths) / self._full_macs


class ComplexityLoss(torch.nn.Module):
    """The complexity term of the loss, and the budget that steers it.

    With a fixed ``weight`` this is the published form,
    ``task loss + weight x complexity``, complexity being MACs relative to the
    full widths. With a budget the weight is a dual variable: it rises while
    the complexity is above ``target(progress)`` and falls below, and the
    target moves geometrically from 1 to the budget over the first
    ``tighten`` of the time in which widths are learned. Steps are taken in
    the logarithm, because the scale of the task loss is not known:

        log weight = integral + damping x v,  integral += dual_lr x v,
        v = (complexity - target) / target

    At the end widths are rounded such that the budget is met exactly.

    Arguments
    ---------
    gates : noisegate.attach.Gates
        The gates.
    budget : float
        Target: share of the MACs at full width, in (0, 1].
    max_macs_per_second : float
        Target in absolute terms; give one of the two, or ``weight``.
    weight : float
        Fixed weight of the complexity.
    initial_weight : float
        First value of the dual variable.
    dual_lr : float
        Step size of the dual variable.
    damping : float
        Immediate reaction to a missed target.
    tighten : float
        Share of the learning time at the end of which target == budget.
    freeze_epoch : int
        First epoch with final widths, at least 2; widths are learned in the
        epochs before.

    Raises
    ------
    ValueError
        If the budget cannot be reached with the smallest widths that the
        gates allow: says what can be.

    Example
    -------
    >>> from speechbrain.nnet.containers import Sequential
    >>> from speechbrain.nnet.linear import Linear
    >>> from noisegate.attach import Gates
    >>> net = Sequential(input_shape=[None, None, 8])
    >>> net.append(Linear, n_neurons=16, layer_name="hidden")
    >>> net.append(Linear, n_neurons=1, layer_name="out")
    >>> gates = Gates(net, input_shape=[1, 100, 8])
    >>> loss = ComplexityLoss(gates, budget=0.5)
    >>> loss.step(progress=1.0)
    >>> loss.freeze()
    {'hidden': 8}
    """

    def __init__(
        self,
        gates,
        budget=None,
        max_macs_per_second=None,
        weight=None,
        initial_weight=0.05,
        dual_lr=0.1,
        damping=3.0,
        tighten=0.8,
        freeze_epoch=2,
    ):
        super().__init__()
        given = (budget, max_macs_per_second, weight)
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "give exactly one of budget, max_macs_per_second, weight; got "
                f"{budget}, {max_macs_per_second}, {weight}"
            )
        full = gates.cost.macs_per_second()
        if max_macs_per_second is not None:
            budget = min(1.0, max_macs_per_second / full)
        if budget is not None:
            least = float(gates.cost.ratio(gates.min_widths()))
            if not least <= budget <= 1:
                raise ValueError(
                    f"budget {budget:.4g} ({round(budget * full)} MACs per "
                    f"second) is out of reach: with these gates and kappa_min "
                    f"it must be in [{least:.4g}, 1], that is from "
                    f"{math.ceil(least * full)} to {full} MACs per second"
                )
        if not 0 < tighten <= 1:
            raise ValueError(f"tighten must be in (0, 1], got {tighten}")
        if freeze_epoch < 2:
            raise ValueError(f"freeze_epoch must be >= 2, got {freeze_epoch}")
        self.freeze_epoch = freeze_epoch
        self._gates = (gates,)  # its parameters are the model's
        self.budget = budget
        self.fixed_weight = weight
        self.dual_lr, self.damping, self.tighten = dual_lr, damping, tighten
        self.register_buffer("progress", torch.tensor(0.0))
        self.register_buffer("integral", torch.tensor(math.log(initial_weight)))
        self.register_buffer("log_weight", self.integral.clone())

    @property
    def gates(self):
        """noisegate.attach.Gates : the gates."""
        return self._gates[0]

    @property
    def weight(self):
        """float : the present weight of the complexity."""
        if self.gates.frozen or self.budget == 1:
            return 0.0
        if self.fixed_weight is not None:
            return float(self.fixed_weight)
        return math.exp(float(self.log_weight))

    def target(self):
        """Returns the share of the full MACs aimed at now.

        Returns
        -------
        float
        """
        return self.budget ** min(1.0, float(self.progress) / self.tighten)

    def forward(self):
        """Returns the term to add to the task loss.

        Returns
        -------
        torch.Tensor
            Scalar, ``weight x complexity``; its gradient is zero once the
            widths are frozen.
        """
        if not self.gates.gates:
            return torch.zeros((), device=self.progress.device)
        return self.weight * self.gates.cost.ratio(self.gates.widths())

    @torch.no_grad()
    def step(self, progress):
        """Updates schedule and dual variable, after an optimizer step.

        Arguments
        ---------
        progress : float
            Share of the time in which widths are learned, in [0, 1].
        """
        self.progress.fill_(progress)
        if self.fixed_weight is not None or not self.gates.gates:
            return
        ratio = float(self.gates.cost.ratio(self.gates.widths()))
        violation = max(-1.0, min(1.0, ratio / self.target() - 1))
        self.integral.add_(self.dual_lr * violation).clamp_(-12.0, 7.0)
        self.log_weight.copy_(self.integral + self.damping * violation)
        self.log_weight.clamp_(-12.0, 7.0)

    @torch.no_grad()
    def freeze(self):
        """Rounds all widths and fixes them.

        With a budget the real-valued widths are scaled by one common factor
        to meet it, rounded down, and what is left is given to the gates that
        lost most by rounding, as long as it fits.

        Returns
        -------
        dict of str to int
            The final widths.
        """
        gates = self.gates
        widths = {name: float(k) for name, k in gates.widths().items()}
        if self.budget is None or not gates.gates:
            final = gates.integer_widths()
        else:
            final = self._round_to_budget(widths)
        gates.freeze(final)
        return final

    def _round_to_budget(self, widths):
        gates, cost = self.gates.gates, self.gates.cost
        limit = self.budget * cost.macs() * (1 + 1e-9)

        def scaled(factor):
            return {
                name: min(
                    gates[name].size, max(gates[name].min_width, k * factor)
                )
                for name, k in widths.items()
            }

        low, high = 0.0, max(gate.size for gate in gates.values()) + 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if cost.macs(scaled(middle)) <= limit:
                low = middle
            else:
                high = middle
        ideal = scaled(low)
        final = {
            name: max(gate.min_width, int(ideal[name] + 1e-6) // step * step)
            for name, gate in gates.items()
            for step in [gate.granularity]
        }
        while True:
            fits = [
                (final[name] - ideal[name], name)
                for name, gate in gates.items()
                if final[name] + gate.granularity <= gate.size
                and cost.macs({**final, name: final[name] + gate.granularity})
                <= limit
            ]
            if not fits:
                return final
            name = min(fits)[1]
            final[name] += gates[name].granularity
