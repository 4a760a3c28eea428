"""Event files of TensorBoard, read with its own reader."""


def read(folder):
    """({name: [(step, value)]}, {name: [step]}) of the scalars and pictures of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = found.Tags()
    scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in tags["scalars"]}
    return scalars, {name: [e.step for e in found.Images(name)] for name in tags["images"]}
