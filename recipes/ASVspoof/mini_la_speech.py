"""Speech of espeak-ng for the attacks A07 and A08 of Mini-LA.

Authors
 * The noisegate authors 2026
"""

import ctypes
from pathlib import Path

import numpy as np
from mini_la_chain import SAMPLE_RATE
from scipy.signal import resample_poly

MALE_VOICES = ("en-us+m1", "en-us+m2", "en-us+m3", "en-us+m5", "en-us+m7")
# Not f2, f3 and f5, whose breath is another one each time
FEMALE_VOICES = ("en-us+f1", "en-us+f4")
SENTENCES = (
    "Please make me a small coffee with a little milk.",
    "The old ferry leaves the harbour at a quarter past nine.",
    "Nobody knows who painted the door of the garden shed.",
    "Turn off the lamp in the kitchen and close the window.",
    "A cold wind blew dust across the empty market square.",
    "My brother keeps his bicycle under the wooden stairs.",
    "We should have asked the driver which road is open.",
    "She found three silver coins between the floor boards.",
    "Could you put a double espresso on the blue tray?",
    "The judge read every page of the report before lunch.",
    "His voice is my password, or at least it used to be.",
    "Five geese flew over the house as the fog was lifting.",
)


def has_text_to_speech():
    """Whether espeak-ng can be loaded.

    Returns
    -------
    found : bool
    """
    try:
        import espeakng_loader
    except ImportError:
        return False
    return Path(espeakng_loader.get_library_path()).is_file()


def speak(path):
    """Speaks all sentences in all voices by espeak-ng and stores them.

    The library keeps a state from one call to the next: only a fresh process
    that makes the same calls gets the same samples.

    Arguments
    ---------
    path : str
        File to write (``.npz``): for each voice and sentence an array at 16
        kHz.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_short),
        ctypes.c_int,
        ctypes.c_void_p,
    )
    def keep(samples, n_samples, events):
        if samples and n_samples > 0:
            chunks.append(
                np.ctypeslib.as_array(samples, (n_samples,)).astype(float)
            )
        return 0

    synchronous_output, utf_8 = 2, 1
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(synchronous_output, 0, data, 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng does not start with the data in {data}")
    library.espeak_SetSynthCallback(keep)
    spoken = {}
    for voice in MALE_VOICES + FEMALE_VOICES:
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        for i, sentence in enumerate(SENTENCES):
            chunks.clear()
            text = sentence.encode()
            library.espeak_Synth(
                text, len(text) + 1, 0, 1, 0, utf_8, None, None
            )
            divisor = np.gcd(rate, SAMPLE_RATE)
            spoken[f"{voice}/{i:02d}"] = resample_poly(
                np.concatenate(chunks) / 2**15,
                SAMPLE_RATE // divisor,
                rate // divisor,
            ).astype(np.float32)
    np.savez(path, **spoken)
