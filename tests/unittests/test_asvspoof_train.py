"""Losses, crops and sampling of the ASVspoof recipe."""

import importlib.util
import json
from pathlib import Path

import pytest
import soundfile as sf
import torch
from asvspoof_losses import oc_softmax, spoofing_loss, weighted_cross_entropy

RECIPE = Path(__file__).parents[2] / "recipes" / "ASVspoof"


@pytest.fixture(scope="module")
def train():
    """The training script as a module of its own name."""
    spec = importlib.util.spec_from_file_location(
        "asvspoof_train", RECIPE / "train.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(tmp_path):
    """Manifests and files that hold the number of each sample."""
    manifest = {}
    for i, n_samples in enumerate((500, 1000, 2500)):
        path = tmp_path / f"u{i}.flac"
        ramp = torch.arange(n_samples) / 2**15
        sf.write(path, ramp.numpy(), 1000, subtype="PCM_16")
        manifest[f"u{i}"] = {
            "wav": f"{{data_root}}/u{i}.flac",
            "length": n_samples / 1000,
            "label": "spoof" if i else "bonafide",
            "attack": "A01" if i else "-",
            "speaker": "LA_0001",
        }
    (tmp_path / "all.json").write_text(json.dumps(manifest))
    hparams = {
        f"{split}_annotation": tmp_path / "all.json"
        for split in ("train", "valid", "test")
    }
    hparams |= {"data_folder": str(tmp_path), "sample_rate": 1000}
    return {**hparams, "segment_s": 1.0, "bonafide_share": 0.5, "seed": 1}


def test_crops_in_training_and_whole_files_in_test(train, corpus):
    torch.manual_seed(0)
    datasets, _ = train.dataio_prep(corpus)
    starts = set()
    for _ in range(20):
        crops = {item["id"]: item["sig"] for item in datasets["train"]}
        assert {len(crop) for crop in crops.values()} == {1000}
        number = (crops["u2"] * 2**15).round()
        assert torch.equal(number.diff(), torch.ones(999))
        starts.add(int(number[0]))
    assert len(starts) > 10 and max(starts) <= 1500
    for split in ("valid", "test"):
        whole = {item["id"]: item["sig"] for item in datasets[split]}
        assert [len(whole[i]) for i in ("u0", "u1", "u2")] == [1000, 1000, 2500]
        # The short one is repeated
        assert torch.equal(whole["u0"][:500], whole["u0"][500:])


def test_balanced_sampling(train, corpus):
    """One of three is bona fide, half of the draws are."""
    _, sampler = train.dataio_prep(corpus)
    drawn = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert len(drawn) == 600
    assert drawn.count(0) / 600 == pytest.approx(0.5, abs=0.06)
    corpus["bonafide_share"] = None
    assert train.dataio_prep(corpus)[1] is None
    corpus["bonafide_share"] = 0.0
    with pytest.raises(ValueError, match="bonafide_share must be in"):
        train.dataio_prep(corpus)


def test_cross_entropy_is_that_of_two_outputs():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 2), torch.randint(2, (50,))
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor([0.1, 0.9])
    )
    got = weighted_cross_entropy(logits[:, 1] - logits[:, 0], labels, 0.9)
    assert torch.allclose(got, expected)


def test_oc_softmax_by_hand():
    scores, labels = torch.tensor([0.5, -0.3, 0.4]), torch.tensor([1, 0, 0])
    terms = [20 * (0.9 - 0.5), 20 * (-0.3 - 0.2), 20 * (0.4 - 0.2)]
    expected = torch.tensor(terms).exp().log1p().mean()
    assert torch.allclose(oc_softmax(scores, labels), expected)
    # Perfect cosines cost next to nothing, the wrong way round a lot
    best = torch.tensor([1.0, -1.0])
    right = oc_softmax(best, torch.tensor([1, 0]))
    assert right < 0.1 and oc_softmax(-best, torch.tensor([1, 0])) > 20


@pytest.mark.parametrize("one_class", [False, True])
def test_the_losses_pull_the_right_way(one_class):
    scores = torch.zeros(2, requires_grad=True)
    labels = torch.tensor([1, 0])
    spoofing_loss(scores, labels, one_class).backward()
    assert scores.grad[0] < 0 < scores.grad[1]
    with pytest.raises(ValueError, match="bonafide_weight must be between"):
        spoofing_loss(scores, labels, one_class, bonafide_weight=0.0)
