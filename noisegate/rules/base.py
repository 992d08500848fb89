"""The form of a rule, and the register that users may add to.

Authors
 * The noisegate developers, 2026
"""

from typing import NamedTuple

import torch
from torch.func import functional_call

_RULES = {}  # by class of the module


class Cost(NamedTuple):
    """What a layer costs: numbers, or tensors for real-valued widths."""

    macs: object  # multiply-accumulates of one pass
    params: object  # number of parameters
    elements: object  # number of values that it puts out (activations)


def inner(module, name):
    """A size of a layer, which may be inside of another (LoRA)."""
    return next(getattr(m, name) for m in module.modules() if hasattr(m, name))


def register(*classes):
    """Makes a rule known, as a decorator.

    Arguments
    ---------
    *classes : type
        Classes of modules, which include their subclasses; of several that
        fit a module the most special one counts.

    Returns
    -------
    callable
        Takes the rule, a subclass of :class:`LayerRule`, and returns it.
    """

    def decorate(rule):
        for kind in classes:
            if not (isinstance(kind, type) and issubclass(rule, LayerRule)):
                raise TypeError(
                    "register takes classes and decorates a LayerRule, got "
                    f"{kind} and {rule}"
                )
            _RULES[kind] = rule
        return rule

    return decorate


def rule_of(module):
    """Returns the rule of a module.

    Arguments
    ---------
    module : torch.nn.Module
        Any module.

    Returns
    -------
    LayerRule
        One without sizes if nothing is known of the module.

    Example
    -------
    >>> import noisegate.rules
    >>> rule_of(torch.nn.Linear(3, 4)).sizes()
    {'in': 3, 'out': 4}
    """
    for kind in type(module).__mro__:
        if kind in _RULES:
            return _RULES[kind](module)
    return LayerRule(module)


def find_leaves(model):
    """Returns the rules (dict) by path of the layers of a model, which are
    looked at as a whole."""
    leaves = {}
    for path, module in model.named_modules():
        inner = any(path.startswith(leaf + ".") for leaf in leaves)
        rule = rule_of(module)
        if path and not inner and rule.sizes() and not rule.in_front:
            leaves[path] = rule
    return leaves


class LayerRule:
    """All that noisegate knows of one family of modules.

    What a layer reads or makes has *roles*: "in" are the features that it
    reads, "out" the channels that it makes of them, "norm" those that it
    treats one by one or normalizes; a rule may have more for what is inside
    ("hidden", "heads"). A rule of a layer must have :meth:`sizes` and
    :meth:`cost`; the other defaults fit a layer whose ``weight`` is (out, in,
    ...) and whose features are the last axis. Rules of modules around layers
    have none of the two.

    Arguments
    ---------
    layer : torch.nn.Module
        The module that the rule speaks of.
    """

    kind = None  # name of classes that compute the same in evaluation
    family = "linear"  # role of the groups of channels that it makes
    masks = ()  # roles whose closed channels its forward has to know
    granularity = 1  # of the widths of the channels that it reads
    n_blocks = 1  # into which its features fall; if more, they are cut whole
    weight_axes = {"in": 1, "out": 0}
    n_values = 1  # leading arguments that features are read from
    in_front = False  # makes what the model reads, is no layer of it
    fused = False  # has kernels whose multiplications no counter sees
    stacks = False  # takes the states of its layers for tensors of one size
    inside = None  # role of groups that are made inside this module
    named_part = None  # child that gives its name to the groups inside

    def __init__(self, layer):
        self.layer = layer

    def sizes(self):
        """Number of features by role (dict); empty if it is no layer."""
        return {}

    def axis_of(self, name, role):
        """Axis of a parameter along the features of a role, or None."""
        axes = {"weight": self.weight_axes, "bias": {"out": 0}}
        return axes.get(name, {}).get(role)

    @property
    def makes(self):
        """bool : whether it makes new channels of those that it reads."""
        return "out" in self.sizes()

    @property
    def treats(self):
        """str : role of the features that reach it."""
        return "in" if self.makes else "norm"

    @property
    def n_read(self):
        """int : number of features that reach it."""
        return self.sizes().get(self.treats, 0)

    # ---- how it is called ------------------------------------------------

    def axes(self, n_dims):
        """Axes of the features (negative, ascending) in n_dims axes."""
        return [-1]

    def shape(self, x):
        """Shape that sets one value per feature against a tensor."""
        n_dims, axes = x.dim(), self.axes(x.dim())
        return [
            x.shape[axis] if axis in axes else 1 for axis in range(-n_dims, 0)
        ]

    def values(self, args, kwargs):
        """What a call reads features from: list of (role, value or None)."""
        given = [*args, *kwargs.values()][: self.n_values]
        return [(self.treats, value) for value in given]

    def gated(self, gate, args, kwargs):
        """Arguments of a call in which ``gate`` was applied to what is read."""

        def apply(x):
            if isinstance(x, torch.nn.utils.rnn.PackedSequence):
                return x._replace(data=gate(x.data))
            return gate(x)

        if args:
            return (apply(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: apply(kwargs[first])}

    def map_output(self, function, output):
        """An output in which the parts that have features are replaced."""
        return function(output)

    # ---- groups of channels ----------------------------------------------

    def ports(self, role, index):
        """Where a group appears, of which ``index`` holds the channel of each
        feature seen in a role (-1: of no channel): list of (role, index)."""
        return [(role, index)]

    def refuses(self, role, whole):
        """Why it cannot narrow with a group, or None; ``whole``: whether all
        features of the role are of the group's channels."""

    def locked(self):
        """Why features may not change, by role (dict)."""
        return {}

    def mixes(self):
        """What is said of channels that it does not tell apart, or None."""
        kinds = type(self.layer).__mro__
        own = next(k for k in kinds if k in _RULES or "forward" in vars(k))
        if own not in _RULES:
            return (
                f"is a {kinds[0].__name__}, whose forward is its own: register "
                "a rule for it (docs/own_layer.md)"
            )
        return None

    def inner_groups(self):
        """Groups that are seen inside only: list of (role, size, reason why
        it may not change or None)."""
        return []

    # ---- gates and cuts --------------------------------------------------

    @property
    def reading(self):
        """torch.Tensor : weights that read the features, (features, ...)."""
        return self.layer.weight.movedim(self.weight_axes["in"], 0)

    def energy(self):
        """Sum of the squared weights that read each feature: (features,)."""
        return self.reading.square().flatten(1).sum(1)

    def masked(self, weights, args, kwargs):
        """What the layer returns if closed channels do not count.

        Called for rules with ``masks``. ``weights(role, size, like)`` says how
        much channels count: (size,), in [0, 1]. ``weights.run(parameters,
        args, kwargs)`` is the layer's own forward with some parameters
        replaced. See :class:`noisegate.gates.Masked`.
        """
        raise NotImplementedError

    def cut(self, role, index):
        """Keeps the features ``index`` (ascending) of a role, in place."""
        select(self.layer, "weight", self.weight_axes[role], index)
        if role == "out":
            select(self.layer, "bias", 0, index)
        what = "channels" if hasattr(self.layer, "in_channels") else "features"
        setattr(self.layer, f"{role}_{what}", len(index))

    def renew(self):
        """Corrects the sizes that a module keeps of layers inside."""

    # ---- cost ------------------------------------------------------------

    def record(self, args, kwargs, output):
        """What the cost of a call depends on beside widths (dict of int);
        ``output`` is the first tensor returned. Calls are added up."""
        sizes = self.sizes()
        made = sizes.get("out", sizes.get("norm"))
        return {"positions": output.numel() // int(made)}

    def cost(self, widths, calls):
        """The :class:`Cost` for widths by role, integers or tensors, and
        what was recorded of the calls."""
        raise NotImplementedError


def select(module, name, axis, index):
    """Keeps some entries of a parameter or buffer of a module, in place.

    Arguments
    ---------
    module : torch.nn.Module
        Who owns it.
    name : str
        Its name; nothing is done if the module has none.
    axis : int
        Axis of the entries.
    index : torch.Tensor
        Which stay, ascending.
    """
    parameter = getattr(module, name, None)
    if parameter is None:
        return
    selected = parameter.detach().index_select(axis, index)
    if isinstance(parameter, torch.nn.Parameter):
        selected = torch.nn.Parameter(selected, parameter.requires_grad)
    elif name in dict(module.named_buffers(recurse=False)):
        # Saved from now on: a constructor would make its full size
        module.register_buffer(name, selected)
    setattr(module, name, selected)


def parents(model, path):
    """Paths and modules around a layer, from the outside in."""
    parts = path.split(".")
    paths = [".".join(parts[:i]) for i in range(len(parts))]
    return [(around, model.get_submodule(around)) for around in paths]


def shared_parameters(model):
    """Returns the parameters that several layers have: for each of them a
    list of (path, layer, name)."""
    places = {}
    for path, layer in model.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((path, layer, name))
    return [place for place in places.values() if len(place) > 1]


class OwnForward(torch.nn.Module):
    """A layer's own forward, without the hooks, which have run already."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.own = layer.forward  # may be one of the instance

    def forward(self, *args, **kwargs):
        """Returns what the layer returns."""
        return self.own(*args, **kwargs)

    def run(self, parameters, args, kwargs):
        """The same with some parameters (dict, by name) replaced."""
        parameters = {f"layer.{k}": v for k, v in parameters.items()}
        return functional_call(self, parameters, args, kwargs)
