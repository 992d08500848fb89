"""The front-end: channels that are made before the model.

Authors
 * The noisegate developers, 2026
"""

import speechbrain as sb
import torch

from noisegate.rules.base import Cost, LayerRule, register

FEATURES = "features"  # the group of what the model reads


@register(sb.lobes.features.Fbank)
class FbankRule(LayerRule):
    """SpeechBrain's mel filterbank: ``MACs = positions bins bands``."""

    in_front = True

    def sizes(self):
        bank = self.layer.compute_fbanks
        return {"in": bank.n_stft, "out": bank.n_mels}

    @property
    def top_db(self):
        """float : range in dB below the loudest band that is kept."""
        return self.layer.compute_fbanks.top_db

    def locked(self):
        if self.layer.deltas or self.layer.context:
            return {"out": "deltas or context windows follow the filterbank"}
        return {}

    def cost(self, widths, calls):
        """See the base class; the filters are fixed, the FFT not counted."""
        positions, bands = calls["positions"], widths["out"]
        return Cost(positions * widths["in"] * bands, 0, positions * bands)

    def cut(self, role, index):
        """Returns a filterbank with the bands ``index``.

        SpeechBrain's trainable filterbank keeps centres and bandwidths as
        parameters: any subset of filters can be loaded into one.
        """
        old = self.layer.compute_fbanks
        arguments = self.arguments()
        arguments.update(n_mels=len(index), requires_grad=True)
        new = sb.lobes.features.Fbank(**arguments)
        bank = new.compute_fbanks
        # It multiplies by the sample rate, the old one by its settings
        trained = old.param_change_factor**2
        scale = 1 / old.sample_rate if old.freeze else trained
        with torch.no_grad():
            bank.f_central.copy_(old.f_central.cpu()[index] * scale)
            bank.band.copy_(old.band.cpu()[index] * scale)
        return self._set(new)

    def spaced(self, bands):
        """Returns centres and bandwidths, in Hz, of all filters if they are
        spaced as those of a filterbank of that many bands, which may be a
        real number: the first behind them is at the end of the spectrum."""
        bank = self.layer.compute_fbanks
        low, high = bank._to_mel(bank.f_min), bank._to_mel(bank.f_max)
        step = (high - low) / (bands + 1)
        mel = low + step * torch.arange(bank.n_mels + 2)
        if not torch.is_tensor(bands):  # to the bit
            mel[: bands + 2] = torch.linspace(low, high, bands + 2)
        hz = bank._to_hz(mel)
        return hz[1:-1], (hz[1:] - hz[:-1])[:-1]

    def respaced(self, bands):
        """Returns a plain filterbank of that many bands."""
        new = sb.lobes.features.Fbank(**{**self.arguments(), "n_mels": bands})
        return self._set(new)

    def _set(self, new):
        """Brings over what may have been set behind the constructor."""
        old, bank = self.layer.compute_fbanks, new.compute_fbanks
        names = ("log_mel", "power_spectrogram", "multiplier", "amin")
        for name in (*names, "ref_value", "db_multiplier", "top_db"):
            setattr(bank, name, getattr(old, name))
        return new.requires_grad_(False)

    def arguments(self):
        """Constructor arguments (dict) that build such a front-end again."""
        module = self.layer
        stft, bank = module.compute_STFT, module.compute_fbanks
        names = ("f_min", "f_max", "n_fft", "n_mels", "filter_shape")
        return {
            "deltas": module.deltas,
            "context": module.context,
            "requires_grad": module.requires_grad,
            "sample_rate": stft.sample_rate,
            "win_length": 1000 * stft.win_length / stft.sample_rate,
            "hop_length": 1000 * stft.hop_length / stft.sample_rate,
            **{name: getattr(bank, name) for name in names},
        }
