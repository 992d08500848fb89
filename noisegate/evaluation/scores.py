"""What collects the scores of a test, and what keeps them.

Authors
 * The noisegate developers, 2026
"""

import numpy as np
import torch

from noisegate.evaluation.bootstrap import confidence_intervals
from noisegate.evaluation.metrics import (
    _check_costs,
    _check_values,
    act_dcf,
    affine_calibration,
    bayes_threshold,
    cllr,
    eer,
    f1_threshold,
    min_dcf,
    precision_recall_f1,
    roc_auc,
)
from noisegate.evaluation.tdcf import AsvErrors, min_tdcf
from noisegate.evaluation.trials import Trials, write_scores, write_trials


class FrameScores:
    """Collects frame scores of a data set and pools them into metrics.

    For `Brain` recipes, as `!name:noisegate.evaluation.scores.FrameScores` in
    the YAML and called at the start of a stage. All frames of all recordings
    are pooled: long recordings count for more. Padding never counts: of T
    frames, the first round(lens * T) are kept. What is kept is on the CPU.

    Arguments
    ---------
    p_target : float
        For minDCF; see `min_dcf`.
    c_miss : float
        For minDCF.
    c_fa : float
        For minDCF.

    Example
    -------
    >>> stats = FrameScores()
    >>> scores = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.6, 0.0]])
    >>> labels = torch.tensor([[1, 0, 0], [1, 1, 1]])
    >>> lens = torch.tensor([1.0, 0.667])  # the last frame is padding
    >>> stats.append(["a", "b"], scores, labels, lens, ["<5", "<5"])
    >>> summary = stats.summarize()
    >>> summary["EER"], summary["EER <5"], summary["threshold"]
    (0.0, 0.0, 0.6...)
    """

    def __init__(self, p_target=0.5, c_miss=1.0, c_fa=1.0):
        _check_costs(p_target, c_miss, c_fa)
        self.costs = {"p_target": p_target, "c_miss": c_miss, "c_fa": c_fa}
        self.ids, self.groups, self.speakers = [], [], []
        self.scores, self.labels = [], []  # one (frames,) tensor per id

    def append(self, ids, scores, labels, lens, groups=None, speakers=None):
        """Adds a batch.

        Arguments
        ---------
        ids : list
            Identifiers of the recordings.
        scores : torch.Tensor (batch, time)
            Frame scores, higher = target.
        labels : torch.Tensor (batch, time)
            1 for target, 0 for non-target; padding may hold anything.
        lens : torch.Tensor (batch,)
            Relative lengths, 0 to 1.
        groups : list of str
            A group per recording, e.g. its range of SNR; or None.
        speakers : list of str
            Speaker of each recording, for :meth:`write`; its identifier if
            None.
        """
        if scores.ndim != 2 or scores.shape != labels.shape:
            raise ValueError(
                "scores and labels must both be (batch, time), got "
                f"{tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        groups = [None] * len(ids) if groups is None else groups
        speakers = ids if speakers is None else speakers
        sizes = [len(x) for x in (ids, groups, speakers, lens, scores)]
        if len(set(sizes)) > 1:
            raise ValueError(
                "ids, groups, speakers, lens and scores must agree in batch "
                f"size, got {sizes}"
            )
        lens = lens.detach().cpu().double()
        if not bool(((lens >= 0) & (lens <= 1)).all()):
            raise ValueError(f"lens must be within 0..1, got {lens.tolist()}")
        frames = torch.round(lens * scores.shape[1]).long().tolist()
        scores, labels = scores.detach().cpu(), labels.detach().cpu()
        kept = []
        for i, n in enumerate(frames):  # all is checked before any is kept
            _check_values(scores[i, :n], labels[i, :n], f" of {ids[i]!r}")
            kept.append((scores[i, :n].clone(), labels[i, :n] == 1))
        self.ids.extend(ids)
        self.groups.extend(groups)
        self.speakers.extend(speakers)
        self.scores.extend(score for score, _ in kept)
        self.labels.extend(label for _, label in kept)

    def summarize(self, threshold=None):
        """Metrics over all frames appended so far.

        Arguments
        ---------
        threshold : float
            Threshold of F1, precision and recall. None takes the one that
            maximises F1 on these very frames: right for validation data; for
            test data give the one found in validation.

        Returns
        -------
        summary : dict
            Floats: `EER` (percent), `minDCF`, `AUC`, `F1`, `precision`,
            `recall` (0 to 1), `threshold`, and `EER <group>` (percent) for
            each group, nan where a group holds one class only.
        """
        if not self.scores:
            raise ValueError("scores are empty: nothing was appended")
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        if threshold is None:
            threshold = f1_threshold(scores, labels)
        precision, recall, f1 = precision_recall_f1(scores, labels, threshold)
        summary = {
            "EER": eer(scores, labels),
            "minDCF": min_dcf(scores, labels, **self.costs),
            "AUC": roc_auc(scores, labels),
            "F1": f1,
            "precision": precision,
            "recall": recall,
            "threshold": float(threshold),
        }
        for group in sorted({g for g in self.groups if g is not None}):
            mine = [i for i, g in enumerate(self.groups) if g == group]
            scores = torch.cat([self.scores[i] for i in mine])
            labels = torch.cat([self.labels[i] for i in mine])
            both = bool(labels.any()) and not bool(labels.all())
            summary[f"EER {group}"] = (
                eer(scores, labels) if both else float("nan")
            )
        return summary

    def write(self, path):
        """Writes the trials by speaker; see `write_trials`.

        Scores are rounded to 0.1, fine enough for log-odds: hundreds of
        thousands of frames make a file of some thousand lines, of nearly the
        same EER.
        """
        lengths = [len(scores) for scores in self.scores]
        speakers = np.repeat(self.speakers, lengths)
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        scores = np.round(scores.double().numpy(), 1)
        write_trials(path, Trials.of(scores, labels.numpy(), speakers))


class UtteranceScores:
    """Collects one score per utterance and turns them into metrics.

    For `Brain` recipes, as `!name:noisegate.evaluation.scores.UtteranceScores`
    in the YAML and called at the start of a stage. The defaults are the costs
    of ASVspoof 5 (Wang et al., "ASVspoof 5: crowdsourced speech data,
    deepfakes, and adversarial attacks at scale", ASVspoof workshop 2024), where
    bona fide is the target class.

    Arguments
    ---------
    p_target : float
        For minDCF and actDCF; see `min_dcf`.
    c_miss : float
        For minDCF and actDCF.
    c_fa : float
        For minDCF and actDCF.

    Example
    -------
    >>> stats = UtteranceScores()
    >>> scores, labels = torch.tensor([2.0, 1.0, 0.0, 1.5]), [1, 1, 0, 0]
    >>> stats.append(
    ...     ["a", "b", "c", "d"],
    ...     scores,
    ...     labels,
    ...     attacks=["-", "-", "A01", "A02"],
    ...     speakers=["x", "y", "x", "y"],
    ... )
    >>> summary = stats.summarize()
    >>> summary["EER"], summary["EER A01"], summary["EER A02"]
    (50.0, 0.0, 50.0)
    """

    def __init__(self, p_target=0.95, c_miss=1.0, c_fa=10.0):
        _check_costs(p_target, c_miss, c_fa)
        self.costs = {"p_target": p_target, "c_miss": c_miss, "c_fa": c_fa}
        self.ids, self.attacks, self.speakers = [], [], []
        self.scores, self.labels = [], []

    def append(self, ids, scores, labels, attacks, speakers):
        """Adds a batch.

        Arguments
        ---------
        ids : list of str
            Identifiers of the utterances.
        scores : torch.Tensor (batch,)
            Scores, higher = bona fide.
        labels : torch.Tensor (batch,)
            1 for bona fide, 0 for spoof.
        attacks : list of str
            Attack of each utterance, "-" for bona fide.
        speakers : list of str
            Speaker of each utterance.
        """
        scores = torch.as_tensor(scores).detach().cpu().double()
        labels = torch.as_tensor(labels).detach().cpu()
        sizes = [len(x) for x in (ids, scores, labels, attacks, speakers)]
        if len(set(sizes)) > 1 or scores.ndim != 1 or labels.ndim != 1:
            raise ValueError(
                "ids, scores, labels, attacks and speakers must be "
                f"one-dimensional and equally long, got {sizes} and scores of "
                f"shape {tuple(scores.shape)}"
            )
        for i, (label, attack) in enumerate(zip(labels.tolist(), attacks)):
            _check_values(scores[i], labels[i], f" of {ids[i]!r}")
            if (label == 1) != (attack == "-"):
                raise ValueError(
                    f"attacks of {ids[i]!r} must be '-' for bona fide and only "
                    f"there, got {attack!r} with label {label}"
                )
        self.ids.extend(ids)
        self.scores.extend(scores.tolist())
        self.labels.extend((labels == 1).int().tolist())
        self.attacks.extend(attacks)
        self.speakers.extend(speakers)

    def summarize(self, calibration=None, asv=None, by_attack=True):
        """Metrics over all utterances, and over those of each attack.

        Each attack is held against all bona fide utterances.

        Arguments
        ---------
        calibration : tuple of float
            Scale and offset that make log-likelihood ratios of the scores, for
            actDCF and Cllr. None fits them to these very scores (see
            `affine_calibration`): right for validation data; for test data
            give the ones found in validation. (1, 0) takes the scores as they
            are, as the challenges do.
        asv : AsvErrors or dict of str to AsvErrors
            Adds t-DCF. A dict has the error rates by attack, and "all".
        by_attack : bool
            Whether there is a value for each attack too.

        Returns
        -------
        summary : dict
            Floats: `EER` (percent), `minDCF`, `actDCF`, `Cllr` (bits), with
            `asv` also `min t-DCF` and `min t-DCF 2019`, the scale and offset
            as `calibration_scale` and `calibration_offset`; all but these
            again as `<name> <attack>`. Nan where there is one class only,
            and for the t-DCF of an attack that never fools the ASV.
        """
        if not self.scores:
            raise ValueError("scores are empty: nothing was appended")
        if calibration is None:
            calibration = (1.0, 0.0)
            if 0 < sum(self.labels) < len(self.labels):
                calibration = affine_calibration(self.scores, self.labels)
        summary = {}
        for attack in [None, *(self._attacks() if by_attack else [])]:
            suffix = "" if attack is None else f" {attack}"
            scores, labels = self._trials(attack)
            both = 0 < sum(labels) < len(labels)
            for name, metric in self._metrics(calibration, asv, attack).items():
                value = metric(scores, labels) if both else float("nan")
                summary[name + suffix] = value
        summary["calibration_scale"] = float(calibration[0])
        summary["calibration_offset"] = float(calibration[1])
        return summary

    def intervals(self, calibration=(1.0, 0.0), asv=None, **kwargs):
        """Confidence intervals of the metrics over all utterances.

        Arguments
        ---------
        calibration : tuple of float
            As in `summarize`, but given: it is not fitted anew to each drawn
            set.
        asv : AsvErrors or dict of str to AsvErrors
            As in `summarize`.
        **kwargs : dict
            For `confidence_intervals`.

        Returns
        -------
        intervals : dict of str to tuple of float
            Lower and upper end by metric, nan where there is one class only.
        """
        metrics = self._metrics(calibration, asv, None)
        if not 0 < sum(self.labels) < len(self.labels):
            return dict.fromkeys(metrics, (float("nan"), float("nan")))
        return confidence_intervals(
            metrics, *self._trials(None), self.speakers, **kwargs
        )

    def write(self, path):
        """Writes the scores to a file; see `write_scores`."""
        write_scores(path, self.ids, self.attacks, self.labels, self.scores)

    def write_trials(self, path):
        """Writes the trials by speaker, rounded to 1e-4; see `write_trials`."""
        scores = np.round(self.scores, 4)
        write_trials(path, Trials.of(scores, self.labels, self.speakers))

    def _attacks(self):
        return sorted(set(self.attacks) - {"-"})

    def _trials(self, attack):
        """Scores and labels of one attack and of bona fide; all for None."""
        kept = [
            i
            for i, a in enumerate(self.attacks)
            if attack is None or a in ("-", attack)
        ]
        return [self.scores[i] for i in kept], [self.labels[i] for i in kept]

    def _metrics(self, calibration, asv, attack):
        """Functions of scores and labels by name."""
        scale, offset = calibration
        threshold = bayes_threshold(**self.costs)

        def llr(scores):
            return scale * torch.as_tensor(scores, dtype=torch.float64) + offset

        metrics = {
            "EER": eer,
            "minDCF": lambda x, y: min_dcf(x, y, **self.costs),
            "actDCF": lambda x, y: act_dcf(llr(x), y, threshold, **self.costs),
            "Cllr": lambda x, y: cllr(llr(x), y),
        }
        if asv is not None:
            errors = asv
            if not isinstance(asv, AsvErrors):
                key = "all" if attack is None else attack
                if key not in asv:
                    raise ValueError(
                        f"asv has no error rates of '{key}', only of "
                        f"{sorted(asv)}"
                    )
                errors = asv[key]

            def tdcf(form):
                if attack is not None and errors.p_fa_spoof == 0:
                    return lambda x, y: float("nan")
                return lambda x, y: min_tdcf(x, y, errors, form)

            metrics["min t-DCF"] = tdcf("2021")
            metrics["min t-DCF 2019"] = tdcf("2019")
        return metrics
