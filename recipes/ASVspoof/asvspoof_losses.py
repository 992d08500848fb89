"""Losses for anti-spoofing, on one score per utterance.

Authors
 * The noisegate developers, 2026
"""

import torch


def weighted_cross_entropy(scores, labels, bonafide_weight=0.5):
    """Binary cross-entropy in which the classes weigh as asked for.

        mean of w_y softplus(-s) for bona fide, w_y softplus(s) for spoof,
        divided by the mean of w_y,

    with the weights w = bonafide_weight and 1 - bonafide_weight: what softmax
    cross-entropy of two outputs with class weights is, s being their
    difference.

    Arguments
    ---------
    scores : torch.Tensor (batch,)
        Log-odds of bona fide.
    labels : torch.Tensor (batch,)
        1 for bona fide, 0 for spoof.
    bonafide_weight : float
        Weight of an utterance of bona fide speech, between 0 and 1; that of a
        spoof is the rest.

    Returns
    -------
    torch.Tensor
        The loss, a scalar.

    Example
    -------
    >>> scores, labels = torch.tensor([0.0, 2.0]), torch.tensor([1, 0])
    >>> weighted_cross_entropy(scores, labels, bonafide_weight=0.9)
    tensor(0.8365)
    """
    labels = labels.to(scores.dtype)
    weights = labels * bonafide_weight + (1 - labels) * (1 - bonafide_weight)
    return torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels, weight=weights / weights.mean()
    )


def oc_softmax(
    scores,
    labels,
    bonafide_weight=0.5,
    alpha=20.0,
    bonafide_margin=0.9,
    spoof_margin=0.2,
):
    """One-class softmax: bona fide speech is compact, spoofs are not.

        mean of softplus(alpha (m1 - s)) for bona fide,
                softplus(alpha (s - m0)) for spoof

    Zhang, Jiang and Duan, "One-class learning towards synthetic voice
    spoofing detection", IEEE Signal Processing Letters 28, 2021, equation
    (5). The class weights, 0.5 in the paper, are ours.

    Arguments
    ---------
    scores : torch.Tensor (batch,)
        Cosines between embedding and the direction of bona fide, -1 to 1.
    labels : torch.Tensor (batch,)
        1 for bona fide, 0 for spoof.
    bonafide_weight : float
        As in :func:`weighted_cross_entropy`.
    alpha : float
        Scale.
    bonafide_margin : float
        m1, the cosine that bona fide speech is pulled above.
    spoof_margin : float
        m0, the cosine that spoofs are pushed below.

    Returns
    -------
    torch.Tensor
        The loss, a scalar.

    Example
    -------
    >>> scores, labels = torch.tensor([0.9, 0.2]), torch.tensor([1, 0])
    >>> oc_softmax(scores, labels)
    tensor(0.6931)
    """
    labels = labels.to(scores.dtype)
    margins = labels * bonafide_margin + (1 - labels) * spoof_margin
    weights = labels * bonafide_weight + (1 - labels) * (1 - bonafide_weight)
    losses = torch.nn.functional.softplus(
        alpha * (1 - 2 * labels) * (scores - margins)
    )
    return (losses * weights).mean() / weights.mean()


def spoofing_loss(scores, labels, one_class=False, bonafide_weight=0.5):
    """One of the losses above, as a switch for the YAML.

    Arguments
    ---------
    scores : torch.Tensor (batch,)
        Output of the model.
    labels : torch.Tensor (batch,)
        1 for bona fide, 0 for spoof.
    one_class : bool
        Whether it is :func:`oc_softmax`; then the model must put out cosines.
    bonafide_weight : float
        Weight of an utterance of bona fide speech, between 0 and 1.

    Returns
    -------
    torch.Tensor
        The loss, a scalar.
    """
    if not 0 < bonafide_weight < 1:
        raise ValueError(
            f"bonafide_weight must be between 0 and 1, got {bonafide_weight}"
        )
    loss = oc_softmax if one_class else weighted_cross_entropy
    return loss(scores, labels, bonafide_weight)
