"""Reads what a run wrote for TensorBoard."""


def scalars(output_folder):
    """Steps and values of each tag, from all event files of a run."""
    # Here, so that tests without TensorBoard need no such package
    from tensorboard.backend.event_processing import event_accumulator

    folder = str(output_folder / "tensorboard")
    events = event_accumulator.EventAccumulator(folder)
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        found[tag] = dict(points)
        assert len(found[tag]) == len(points), f"{tag} has a step twice"
    return found
