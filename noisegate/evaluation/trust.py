"""What a YAML would run when it is loaded.

Authors
 * The noisegate developers, 2026
"""

import inspect
import pydoc
import re

# Modules whose classes are known
_KNOWN = ("torch.nn.", "speechbrain.", "noisegate.")
# Functions that folders of cut models call
_FUNCTIONS = {"setattr", "getattr", "torch.zeros", "torch.Tensor.type"}
_FUNCTIONS |= {
    f"torch.nn.Module.{name}" for name in ("get_submodule", "register_buffer")
}
_TAG = re.compile(r"!(?!ref\b|tuple\b)([A-Za-z]+)(?::([^\s\[\]{},]*))?")


def strangers(text):
    """Returns what a YAML runs (list of str) that is no constructor of torch,
    SpeechBrain or noisegate and none of the functions that folders of cut
    models call.

    Arguments
    ---------
    text : str
        The YAML.

    Returns
    -------
    list of str

    Example
    -------
    >>> strangers("net: !new:torch.nn.Linear [3, 2]")
    []
    >>> strangers("net: !apply:os.system [ls]")
    ['!apply:os.system']
    """
    # Without comments, and what is quoted
    text = re.sub(r"(?m)^\s*#.*|\"[^\"\n]*\"|'[^'\n]*'", "", text)
    found = []
    for kind, path in _TAG.findall(text):
        if kind in ("new", "name"):
            known = path == "tuple" or path.startswith(_KNOWN)
            good = known and inspect.isclass(pydoc.locate(path))
        else:
            good = kind == "apply" and path in _FUNCTIONS
        if not good:
            found.append(f"!{kind}:{path}")
    return sorted(set(found))


def check_trust(path, trusted):
    """Raises ValueError if a YAML runs code of its own and is not trusted.

    Arguments
    ---------
    path : pathlib.Path
        The YAML.
    trusted : bool
        Whether the user has said so.

    Raises
    ------
    ValueError
        Names what would be run.
    """
    found = strangers(path.read_text(encoding="utf-8"))
    if found and not trusted:
        raise ValueError(
            f"{path} runs code that is not of torch, SpeechBrain or noisegate "
            f"when it is loaded: {', '.join(found)}. If it is yours, or you "
            "have read it: --trust"
        )
