#!/usr/bin/env python3
"""Installs noisegate: pip install -e ".[dev,docs]"."""

from pathlib import Path

from setuptools import find_packages, setup

version = (Path(__file__).parent / "noisegate" / "version.txt").read_text()
# Mini-LA, the corpus that recipes/ASVspoof makes: WORLD, espeak-ng, the check
# for shortcuts; and the intervals of its results.
asvspoof = [
    "pyworld",
    "espeakng-loader",
    "scikit-learn",
    "confidence-intervals",
]
report = "plotly==7.*"
onnx = ["onnx", "onnxruntime", "onnxscript"]

setup(
    name="noisegate",
    version=version.strip(),
    description="Learns the layer sizes of SpeechBrain models in training",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["noisegate", "noisegate.*"]),
    package_data={"noisegate": ["version.txt"]},
    entry_points={"console_scripts": ["noisegate=noisegate.cli:main"]},
    # torch and torchaudio must come from the same release: SpeechBrain
    # imports torchaudio, whose binary part links against torch's.
    install_requires=[
        "speechbrain==1.1.*",
        "torch==2.11.*",
        "torchaudio==2.11.*",
        "hyperpyyaml",
        "sentencepiece",
        "soundfile",
        "scipy",
        "matplotlib",
    ],
    extras_require={
        "asvspoof": asvspoof,
        "dev": [
            *asvspoof,
            "pytest>=8",
            "ruff==0.17.5",
            "yamllint",
            "fvcore",
            "torch-pruning==1.6.*",
            "expected-cost",
            "submitit",
            "tensorboard",
            report,
            *onnx,
        ],
        # noisegate report
        "report": [report],
        # What recipes compare with
        "rivals": ["torch-pruning==1.6.*"],
        # benchmarks/zoo.py; without them its column on ONNX is left out
        "benchmarks": ["torch-pruning==1.6.*", *onnx],
        # noisegate latency; without them torch alone is timed
        "onnx": onnx,
        # noisegate sweep --slurm
        "slurm": ["submitit"],
        # recipes with use_tensorboard
        "tensorboard": ["tensorboard"],
        "docs": ["mkdocs"],
    },
)
