"""What a sweep compares: the methods, and the YAML of each.

Authors
 * The noisegate developers, 2026
"""

import io

_HARD = "noisegate.baselines.gates.HardGate"
_FIXED = "noisegate.baselines.gates.FixedWidths"
# Gate, complexity loss (None: as in the recipe) and further keys of the latter
METHODS = {
    "dense": (None, None, {}),
    "noise": (None, None, {}),
    "hard_concrete": ("noisegate.baselines.gates.HardConcreteGate", None, {}),
    "stg": ("noisegate.baselines.gates.STGGate", None, {}),
    "torch_pruning": (_HARD, "noisegate.baselines.pruning.TorchPruning", {}),
    "magnitude": (_HARD, "noisegate.baselines.pruning.MagnitudePruning", {}),
    "narrow": (_HARD, _FIXED, {"widths": "uniform"}),
    # The widths are overridden with those that noise gates have learned
    "retrained": (_HARD, _FIXED, {"widths": "uniform"}),
}
FROM_SCRATCH = ("dense", "narrow", "retrained")  # in a chain, too
# Keys of the recipe in which a method needs another value: one parameter per
# channel moves by a hundredth of what one width does
_SETTINGS = {"hard_concrete": {"gate_lr": 0.1}}
_GATE_OPTIONS = {"hard_concrete": {"open_init": 0.9}}
_GATE_KEYS = ("kappa_min", "granularity")  # what all gates have
# Of the recipe's complexity loss. Pruning keeps its own schedule: the gates'
# may be over long before the weights tell anything.
_LOSS_KEYS = ("gates", "budget", "freeze_epoch")


def derive(text, method):
    """Returns the YAML of a rival.

    Arguments
    ---------
    text : str
        YAML of a gated recipe, with the keys ``gates``, ``complexity_loss``,
        ``budget``, ``seed`` and ``output_folder``.
    method : str
        One of METHODS.

    Returns
    -------
    str
        The same with another gate and another complexity loss; the keys of
        the gate that only it has, and those of the loss, are left out. Of a
        chain of budgets there is none.

    Raises
    ------
    ValueError
        If one of the keys is missing.

    Example
    -------
    >>> text = '''
    ... seed: 1
    ... output_folder: results
    ... budget: 0.25
    ... gates: !new:noisegate.Gates
    ...     gate: !name:noisegate.NoiseGate
    ...         kappa_min: 0.1
    ...         ramp: 4.0
    ... complexity_loss: !new:noisegate.ComplexityLoss
    ...     budget: !ref <budget>
    ... '''
    >>> print(derive(text, "hard_concrete").split("gate: ")[1].split("comp")[0])
    !name:noisegate.baselines.gates.HardConcreteGate
        kappa_min: 0.1
        open_init: 0.9
    <BLANKLINE>
    """
    # Here, as the command that needs no more than numpy imports this module
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.tag import Tag

    yaml = YAML()
    yaml.width = 1000
    yaml.indent(mapping=4, sequence=4, offset=2)
    hparams = yaml.load(text)
    missing = [
        key
        for key in ("gates", "complexity_loss", "budget", "seed")
        + ("output_folder",)
        if key not in hparams
    ]
    if missing:
        raise ValueError(
            f"a sweep needs the keys {missing} in the YAML of the gated recipe"
        )
    several = hparams.get("budgets") is not None
    if several:  # a cell is one run
        hparams["budgets"] = None
    if method == "noise" and not several:
        return text
    for key, value in _SETTINGS.get(method, {}).items():
        if key in hparams:
            hparams[key] = value
    gates, loss = hparams["gates"], hparams["complexity_loss"]
    gate_class, loss_class, more = METHODS[method]
    if method == "dense":
        gates["layers"] = []
    if gate_class is not None:
        gate = CommentedMap()
        old = gates.get("gate")
        for key in _GATE_KEYS:
            if isinstance(old, CommentedMap) and key in old:
                gate[key] = old[key]
        gate.update(_GATE_OPTIONS.get(method, {}))
        gate.yaml_set_ctag(Tag(suffix=f"!name:{gate_class}"))
        gates["gate"] = gate
    if loss_class is not None:
        new = CommentedMap()
        for key in _LOSS_KEYS:
            if key in loss:
                new[key] = loss[key]
        new.update(more)
        new.yaml_set_ctag(Tag(suffix=f"!new:{loss_class}"))
        hparams["complexity_loss"] = new
    out = io.StringIO()
    yaml.dump(hparams, out)
    return out.getvalue()
