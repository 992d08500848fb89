"""The data sets of the recipes, which their train.py files share."""

import speechbrain as sb


def make_datasets(hparams, pipelines, output_keys):
    """Creates the datasets "train", "valid" and "test" (dict)."""
    return {
        split: sb.dataio.dataset.DynamicItemDataset.from_json(
            json_path=hparams[f"{split}_annotation"],
            replacements={"data_root": hparams["data_folder"]},
            dynamic_items=[audio_pipeline, *pipelines],
            output_keys=["id", "sig", *output_keys],
        )
        for split in ("train", "valid", "test")
    }


@sb.utils.data_pipeline.takes("wav")
@sb.utils.data_pipeline.provides("sig")
def audio_pipeline(wav):
    """Reads a waveform."""
    return sb.dataio.dataio.read_audio(wav)
