"""Bona fide or spoof: a cut model of recipe ASVspoof, in SpeechBrain's form.

Authors
 * The noisegate developers, 2026
"""

import torch
from speechbrain.inference.interfaces import Pretrained

from noisegate.evaluation.metrics import bayes_threshold


class SpoofingDetector(Pretrained):
    """Loads the ``compact`` folder of a run of recipe ASVspoof.

    Scores are log-likelihood ratios, calibrated on the validation set of the
    run: above 0, bona fide speech is the likelier one. Where to accept follows
    from how probable spoofs are and what errors cost.

    Example
    -------
    >>> detector = SpoofingDetector.from_hparams(
    ...     "results/resnet34_gated/1986/compact"
    ... )  # doctest: +SKIP
    >>> detector.classify_file("call.flac", p_bonafide=0.99)  # doctest: +SKIP
    (3.1..., True)
    """

    HPARAMS_NEEDED = ["sample_rate", "segment_s"]
    HPARAMS_NEEDED += ["calibration_scale", "calibration_offset"]
    MODULES_NEEDED = ["model"]

    @torch.no_grad()
    def log_likelihood_ratios(self, wavs, wav_lens=None):
        """Scores waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples), at ``hparams.sample_rate``, of ``segment_s`` at
            least: the recipe repeats what is shorter.
        wav_lens : torch.Tensor
            Relative lengths, (batch,); None if none is padded.

        Returns
        -------
        torch.Tensor
            Natural logarithms of p(wav | bona fide) / p(wav | spoof), (batch,).
        """
        feats = wavs.to(self.device).float()
        if wav_lens is None:
            wav_lens = torch.ones(len(feats))
        wav_lens = wav_lens.to(self.device)
        if "compute_features" in self.mods:  # else it reads waveforms
            feats = self.mods.compute_features(feats)
            feats = self.mods.mean_var_norm(feats, wav_lens)
        scores = self.mods.model(feats, wav_lens).flatten()
        hparams = self.hparams
        return hparams.calibration_scale * scores + hparams.calibration_offset

    def classify_file(self, path, p_bonafide=0.95, c_miss=1.0, c_fa=10.0):
        """Says whether a file is accepted as bona fide.

        Arguments
        ---------
        path : str
            Audio, of any rate; SpeechBrain's ``load_audio`` reads it.
        p_bonafide : float
            How probable bona fide speech is where this is used. The defaults
            are those of ASVspoof 5.
        c_miss : float
            Cost of refusing bona fide speech.
        c_fa : float
            Cost of accepting a spoof.

        Returns
        -------
        ratio : float
            The log-likelihood ratio.
        accepted : bool
            Whether it reaches the threshold that costs least.

        Raises
        ------
        ValueError
            If the file has no samples, or a cost is not positive.
        """
        threshold = bayes_threshold(p_bonafide, c_miss, c_fa)
        wav = self.load_audio(str(path), savedir=None)
        if len(wav) == 0:
            raise ValueError(f"{path} has no samples")
        least = round(self.hparams.segment_s * self.hparams.sample_rate)
        wav = wav.repeat(-(-least // len(wav)))[: max(len(wav), least)]
        ratio = float(self.log_likelihood_ratios(wav.unsqueeze(0)))
        return ratio, ratio >= threshold
