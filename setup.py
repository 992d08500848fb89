#!/usr/bin/env python3
"""Installs noisegate: pip install -e ".[dev,docs]"."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
version = (HERE / "noisegate" / "version.txt").read_text().strip()
# Mini-LA, the corpus that recipes/ASVspoof makes: WORLD (needs a C compiler),
# espeak-ng, the check for shortcuts; and the intervals of its results.
asvspoof = [
    "pyworld",
    "espeakng-loader",
    "scikit-learn",
    "confidence-intervals",
]
report = ["plotly==7.*", "jinja2"]
onnx = ["onnx", "onnxruntime", "onnxscript"]
baselines = ["torch-pruning==1.6.*"]
deploy = ["onnx", "onnxruntime", "soxr"]
docs = ["mkdocs", "mkdocstrings[python]"]

setup(
    name="speechbrain-noisegate",
    version=version,
    description="Learns the layer sizes of SpeechBrain models in training",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://arxiv.org/abs/2601.13704",
    author="The noisegate developers",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["noisegate", "noisegate.*"]),
    package_data={
        "noisegate": [
            "version.txt",
            "evaluation/*.jinja",
            "deploy/*.onnx",
            "deploy/*.md",
        ]
    },
    entry_points={"console_scripts": ["noisegate=noisegate.cli:main"]},
    # torch and torchaudio must come from the same release: SpeechBrain
    # imports torchaudio, whose binary part links against torch's. SpeechBrain
    # 1.1.2 asks for 2.7.1. torchaudio 2.11.1 says that torch 2.11 is enough,
    # but does not load beside it (it is built with a later one).
    install_requires=[
        "speechbrain==1.1.*",
        "torch>=2.7.1,<2.12",
        "torchaudio>=2.7.1,<2.11.1",
        "hyperpyyaml",
        "sentencepiece",
        "filelock>=4",
        "soundfile",
        "scipy",
        "matplotlib",
    ],
    extras_require={
        # recipes/ASVspoof
        "asvspoof": asvspoof,
        # noisegate report
        "report": report,
        # noisegate sweep --methods=torch_pruning
        "baselines": baselines,
        # noisegate latency; without them torch alone is timed
        "onnx": onnx,
        # noisegate export, noisegate vad
        "deploy": deploy,
        # noisegate sweep --slurm
        "slurm": ["submitit"],
        # recipes with use_tensorboard
        "tensorboard": ["tensorboard"],
        "docs": docs,
        "dev": [
            "pytest>=8",
            "pytest-xdist",
            # Later ones read __file__ of all modules, and with that import
            # what SpeechBrain imports lazily, k2 for example
            "hypothesis<6.131",
            "ruff==0.17.5",
            "yamllint",
            "pre-commit",
            "fvcore",
            "expected-cost",
            "submitit",
            "tensorboard",
            *asvspoof,
            *report,
            *baselines,
            *onnx,
            *deploy,
        ],
    },
)
