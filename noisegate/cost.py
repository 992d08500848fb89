"""Cost of a model as a function of its widths.

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

import copy
import math

import torch
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from speechbrain.utils.logger import get_logger
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from noisegate.cut import cut, detached_copy, kept_features
from noisegate.leaves import (
    ATTENTION,
    CELLS,
    CONVS,
    FEATURES,
    RECURRENT,
    TRANSPOSED,
    depthwise,
    find_leaves,
    kind,
    n_made,
    n_read,
    scale_and_shift,
)
from noisegate.probe import tensors

logger = get_logger(__name__)


PRODUCTS = "products between the layers"


def count_macs(model, inputs):
    """Counts the MACs of one pass, whatever computes them.

    Arguments
    ---------
    model : torch.nn.Module
        The model.
    inputs : list
        Its arguments.

    Returns
    -------
    int

    Example
    -------
    >>> count_macs(torch.nn.Linear(3, 4), [torch.rand(5, 3)])
    60
    """
    # Kernels that compute a whole layer are not counted
    recurrent = any(isinstance(m, RECURRENT) for m in model.modules())
    onednn = torch.backends.mkldnn.enabled and not recurrent
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(),
            torch.backends.mkldnn.flags(enabled=onednn),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() // 2


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


def depthwise_cost(layer, n_in, n_out, calls):
    """Cost of a convolution of each channel by itself.

    Arguments
    ---------
    layer : torch.nn.Module
        The convolution.
    n_in : int or torch.Tensor
        Number of channels.
    n_out : int or torch.Tensor
        The same.
    calls : dict
        "positions": number of output positions.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    weights = n_in * math.prod(layer.kernel_size)
    params = weights + n_in * (layer.bias is not None)
    return calls["positions"] * weights, params, calls["positions"] * n_in


def recurrent_cost(layer, n_in, n_out, calls):
    """Cost of an RNN of L layers and D directions with H units.

    ``MACs = positions G D H ((n_in + H) + (L - 1)(D H + H))``, where G is 3
    for a GRU, 4 for an LSTM and 1 for a simple RNN.

    Arguments
    ---------
    layer : torch.nn.Module
        GRU, LSTM, RNN, or a cell of one of these.
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
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    n_layers = getattr(layer, "num_layers", 1)
    parts = next(layer.parameters()).shape[0] // layer.hidden_size
    per_unit = (n_in + n_out) + (n_layers - 1) * (directions * n_out + n_out)
    weights = parts * directions * n_out * per_unit
    biases = 2 * parts * directions * n_out * n_layers * layer.bias
    elements = calls["positions"] * directions * n_out * n_layers
    return calls["positions"] * weights, weights + biases, elements


def attention_cost(layer, n_in, n_out, calls):
    """Cost of attention of model width E: projections and inner products.

    ``MACs = 2 queries E E + 2 keys E E + 2 pairs E``

    Arguments
    ---------
    layer : torch.nn.MultiheadAttention
        The layer.
    n_in : int or torch.Tensor
        Model width E.
    n_out : int or torch.Tensor
        The same.
    calls : dict
        "queries", "keys": number of vectors; "pairs" of one and the other.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    n_vectors = 2 * calls["queries"] + 2 * calls["keys"]
    macs = n_vectors * n_in * n_out + 2 * calls["pairs"] * n_out
    biases = 4 * n_out * (layer.in_proj_bias is not None)
    elements = n_vectors * n_out + calls["pairs"] * layer.num_heads
    return macs, 4 * n_in * n_out + biases, elements


def relative_attention_cost(layer, n_in, n_out, calls):
    """Cost of SpeechBrain's RelPosMHAXL and RoPEMHA.

    Arguments
    ---------
    layer : speechbrain.nnet.attention.RelPosMHAXL
        The layer.
    n_in : int or torch.Tensor
        Number of input features.
    n_out : int or torch.Tensor
        Number of output features.
    calls : dict
        "queries", "keys", "offsets": number of vectors; "pairs" of queries
        and keys; "pairs_offsets" of queries and offsets; "heads": inner width
        of a head.

    Returns
    -------
    tuple
        MACs, parameters, activations.
    """
    inner = layer.num_heads * calls["heads"]
    in_macs = (calls["queries"] + 2 * calls["keys"]) * n_in * inner
    out_macs = calls["queries"] * inner * n_out
    offsets = calls["offsets"] * layer.embed_dim * inner
    products = (2 * calls["pairs"] + calls["pairs_offsets"]) * inner
    params = 3 * n_in * inner + inner * n_out + n_out
    if calls["offsets"]:
        params = params + layer.embed_dim * inner + 2 * inner
    elements = (calls["queries"] + 2 * calls["keys"]) * inner
    elements = elements + calls["queries"] * n_out
    elements = elements + calls["pairs"] * layer.num_heads
    return in_macs + out_macs + offsets + products, params, elements


def norm_cost(layer, n_in, n_out, calls):
    """Cost of what treats or normalizes channels: parameters only.

    Arguments
    ---------
    layer : torch.nn.Module
        BatchNorm, LayerNorm, PReLU, ...
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
    if kind(layer) == "norm":
        given = scale_and_shift(layer)
    else:
        given = layer.weight, getattr(layer, "bias", None)
    params = sum(tensor is not None for tensor in given) * n_in
    return 0, params, calls["positions"] * n_in


def embedding_cost(layer, n_in, n_out, calls):
    """Cost of an embedding: parameters only.

    Arguments
    ---------
    layer : torch.nn.Embedding
        The layer.
    n_in : int
        Number of tokens.
    n_out : int or torch.Tensor
        Number of features.
    calls : dict
        "positions": number of vectors.

    Returns
    -------
    tuple
        0 MACs, parameters, activations.
    """
    return 0, layer.num_embeddings * n_out, calls["positions"] * n_out


def tensor_cost(tensor, n_in, n_out, calls):
    """Cost of a parameter that the model itself adds or multiplies.

    Arguments
    ---------
    tensor : torch.nn.Parameter
        The parameter.
    n_in : int or torch.Tensor
        Number of entries that depend on the widths.
    n_out : int
        Not used.
    calls : dict
        "others": number of entries along the other axes.

    Returns
    -------
    tuple
        0 MACs, parameters, 0 activations.
    """
    return 0, n_in * calls["others"], 0


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


def _formula(layer):
    """The formula of a leaf."""
    if depthwise(layer):
        return depthwise_cost
    if kind(layer) in ("each", "norm"):
        return norm_cost
    for kinds, formula in (
        (torch.nn.Linear, linear_cost),
        (CONVS + TRANSPOSED, conv_cost),
        (RECURRENT + CELLS, recurrent_cost),
        (torch.nn.Embedding, embedding_cost),
        (torch.nn.MultiheadAttention, attention_cost),
        ((RelPosMHAXL, RoPEMHA), relative_attention_cost),
    ):
        if isinstance(layer, kinds):
            return formula


def _record(layer, args, output):
    """What a formula needs to know of one forward pass."""
    if isinstance(layer, ATTENTION):
        return _record_attention(layer, args)
    output = tensors(output)[0]
    if isinstance(layer, TRANSPOSED):
        # Each input position is multiplied by the whole kernel
        return {"positions": args[0].numel() // layer.in_channels}
    if isinstance(layer, CONVS):
        channels = layer.out_channels
    elif kind(layer) in ("each", "norm"):
        channels = n_read(layer)
    else:
        channels = output.shape[-1]
    return {"positions": output.numel() // channels}


def _in_order(layer, args, kwargs):
    """All arguments of a call, those of attention in the order it has."""
    if isinstance(layer, ATTENTION):
        names = ("query", "key", "value", "pos_embs")
        return [*args, *(kwargs.get(name) for name in names[len(args) :])]
    return [*args, *kwargs.values()]


def _record_attention(layer, args):
    query, key = args[:2]
    first = getattr(layer, "batch_first", True) or query.dim() == 2
    n_keys = key.shape[-2] if first else key.shape[0]
    queries, keys = (x.numel() // x.shape[-1] for x in (query, key))
    recorded = {"queries": queries, "keys": keys, "pairs": queries * n_keys}
    if isinstance(layer, torch.nn.MultiheadAttention):
        return recorded
    offsets = 0
    if isinstance(layer, RelPosMHAXL):
        offsets = args[3].numel() // args[3].shape[-1]
    recorded.update(offsets=offsets, pairs_offsets=queries * offsets)
    return recorded


def _count_cut(model, groups, widths, inputs):
    """The MACs of a model that is cut to some widths."""
    keep = {name: torch.arange(width) for name, width in widths.items()}
    small = cut(detached_copy(model).eval(), kept_features(groups, keep))
    inputs = copy.deepcopy(inputs)
    if FEATURES in keep:
        kept = keep[FEATURES].to(inputs[0].device)
        inputs[0] = inputs[0].index_select(-1, kept)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return count_macs(small, inputs)


class CostModel:
    """MACs, parameters and activations as functions of the widths.

    Arguments
    ---------
    model : torch.nn.Module
        The model at full width.
    groups : list of noisegate.groups.Group
        Its channel groups.
    example : list of torch.Tensor
        Example arguments, a waveform (1, samples) if there is a front-end.
    seconds : float
        Duration of the example: costs are quoted per second of audio.
    features : speechbrain.lobes.features.Fbank
        The front-end, optional.
    """

    def __init__(self, model, groups, example, seconds, features=None):
        self.seconds = seconds
        self.sizes = {group.name: group.size for group in groups}
        ports = {}  # (path, role): [(group, features per channel)]
        for group in groups:
            for port in group.ports:
                read = group.size
                if port.index is not None:
                    read = int((port.index >= 0).sum())
                n_each = read // group.size
                if port.role == "out" and port.layer != FEATURES:
                    layer = model.get_submodule(port.layer)
                    if isinstance(layer, RECURRENT):
                        n_each = 1  # its units, whatever its directions
                place = ports.setdefault((port.layer, port.role), [])
                place.append((group.name, n_each))
        self._layers = []  # (path, layer, formula, in, out, calls)
        # MACs of products between the layers: at full width, and how many
        # fewer each missing channel of a group makes them
        self._products, self._per_missing = 0, {}
        calls = self._run(model, example, features)
        counted = calls.pop(PRODUCTS)
        if features is not None:
            frames = {"positions": calls.pop(FEATURES)}
            bins = features.compute_fbanks.n_stft
            made = 0, [(FEATURES, 1)]
            self._layers.append(
                (FEATURES, features, fbank_cost, (bins, []), made, frames)
            )
        for path, (layer, formula, recorded) in calls.items():

            def width(role, full, path=path):
                # Features of no group, e.g. of the input, are always there
                parts = ports.get((path, role), [])
                varying = sum(self.sizes[name] * n for name, n in parts)
                return full - varying, parts

            if kind(layer) == "maker":
                n_in = (0, [])
                if formula is not embedding_cost:
                    n_in = width("in", n_read(layer))
                n_out = width("out", n_made(layer))
            else:
                n_in = n_out = width("norm", n_read(layer))
            if formula is relative_attention_cost:
                recorded["heads"] = width("heads", layer.head_dim)
            self._layers.append((path, layer, formula, n_in, n_out, recorded))
        for path, parameter in self._other_parameters(model, calls):
            axes = [
                (axis, ports[path, f"axis{axis}"])
                for axis in range(parameter.dim())
                if (path, f"axis{axis}") in ports
            ]
            # One axis is of channels, or none
            size, parts = (axes or [(None, [])])[0]
            size = 1 if size is None else parameter.shape[size]
            varying = sum(self.sizes[name] * n for name, n in parts)
            others = {"others": parameter.numel() // size}
            self._layers.append(
                (
                    path,
                    parameter,
                    tensor_cost,
                    (size - varying, parts),
                    (0, []),
                    others,
                )
            )
        self._products = counted - self._model_macs()
        self._full_macs = self.macs()  # asked for at every step

    @staticmethod
    def _other_parameters(model, calls):
        """Parameters of no layer that has a formula."""
        owned = {
            id(parameter)
            for layer, _, _ in calls.values()
            for parameter in layer.parameters()
        }
        return [
            (path, parameter)
            for path, parameter in model.named_parameters()
            if id(parameter) not in owned
        ]

    def _run(self, model, example, features):
        """One evaluation pass that records what the formulas need."""
        calls, handles = {}, []

        def watch(path, layer):
            def hook(module, args, kwargs, output):
                recorded = _record(
                    module, _in_order(module, args, kwargs), output
                )
                if path in calls:  # the layer is used more than once
                    for key, value in calls[path][2].items():
                        recorded[key] += value
                calls[path] = (layer, _formula(layer), recorded)

            handles.append(layer.register_forward_hook(hook, with_kwargs=True))

        for path, layer in find_leaves(model).items():
            watch(path, layer)
        training = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(0)
                if features is not None:
                    example = [features(example[0])]
                    frames = example[0].numel() // example[0].shape[-1]
                    calls[FEATURES] = frames
                calls[PRODUCTS] = count_macs(model, example)
        finally:
            for module, mode in training.items():
                module.training = mode
            for handle in handles:
                handle.remove()
        return calls

    def _by_layer(self, widths=None):
        """Yields path and (MACs, parameters, activations) of each layer."""
        widths = {**self.sizes, **(widths or {})}

        def resolve(width):
            fixed, parts = width
            return fixed + sum(widths[name] * n for name, n in parts)

        for path, layer, formula, read, made, calls in self._layers:
            if "heads" in calls:
                calls = {**calls, "heads": resolve(calls["heads"])}
            yield path, formula(layer, resolve(read), resolve(made), calls)
        if self._products or self._per_missing:
            macs = self._products
            for name, fewer in self._per_missing.items():
                macs = macs - fewer * (self.sizes[name] - widths[name])
            yield PRODUCTS, (macs, 0, 0)

    def _model_macs(self, widths=None):
        """MACs without those of the front-end."""
        return sum(
            cost[0] for path, cost in self._by_layer(widths) if path != FEATURES
        )

    def fit_products(self, model, groups, inputs):
        """Finds out how products between the layers depend on the widths.

        Such as sums over nodes or frames that are weighted by attention which
        no layer computes. Copies of the model are cut and counted. Channels
        that meet in a product are not gated, so that its MACs are linear in
        each width and no two widths multiply. If that does not explain what
        is counted, a warning is logged.

        Arguments
        ---------
        model : torch.nn.Module
            The model at full width, without gates.
        groups : list of noisegate.groups.Group
            Its channel groups; those that are not fixed can be cut.
        inputs : list
            Arguments of the model for the duration that costs refer to.
        """
        groups = [group for group in groups if group.locked_reason is None]

        def share(factor):
            return {
                group.name: step * max(least, int(factor * group.size) // step)
                for group in groups
                for step in [group.granularity]
                for least in [-(-group.min_width // step)]
            }

        def unexplained(widths):
            counted = _count_cut(model, groups, widths, inputs)
            return self._model_macs(widths) - counted

        def dependent(names):
            """Those of some groups that change the products."""
            if not unexplained({name: half[name] for name in names}):
                return []
            if len(names) == 1:
                return names
            middle = len(names) // 2
            return dependent(names[:middle]) + dependent(names[middle:])

        half, other = share(0.5), share(0.35)
        if not groups or not unexplained(other):
            return
        for name in dependent(list(half)):
            macs = unexplained({name: half[name]})
            missing = self.sizes[name] - half[name]
            exact = macs % missing == 0
            self._per_missing[name] = (
                macs // missing if exact else macs / missing
            )
        if difference := unexplained(other):
            logger.warning(
                f"{type(model).__name__} multiplies features between its "
                f"layers in a way that the cost model does not know: of a cut "
                f"model it says {self._model_macs(other)} MACs, which is "
                f"{difference} too many"
            )

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
