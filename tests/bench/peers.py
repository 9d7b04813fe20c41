"""Other engines at the same work: photos in a folder to one vector each, kept in memory and not written anywhere.

The first three are as the engines' own documents write image inference, with the network eagerly at fp32; `+encoder` are the
same with our encoder inside, so that engine is compared with engine, and `+encoder+resize` with our resizing as well.

- DataLoader: https://docs.pytorch.org/tutorials/beginner/basics/data_tutorial.html with torchvision's ImageFolder;
- Ray Data: https://docs.ray.io/en/latest/data/examples/pytorch_resnet_batch_prediction.html;
- Daft: https://docs.daft.ai/en/stable/custom-code/cls/ and `benchmarking/ai/image_classification` of its repository.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tests.bench.harness import Job, engine_main
from tests.bench.networks import OURS, EagerNetwork, OurNetwork, gpus, load, transform_for

DATALOADER_WORKERS = 2


def _measured(job: Job, images: int) -> dict[str, Any]:
    assert images == len(job.paths), f"{images} vectors of {len(job.paths)} photos"
    return {"images_per_second": job.batch_log.steady_rate()}


def dataloader(job: Job, *, ours: str) -> dict[str, Any]:
    """torchvision's ImageFolder, a DataLoader with worker processes, and a loop."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    network = OurNetwork(job) if ours else EagerNetwork(job)
    transform = transform_for(load(job).recipe.preprocessing, ours, from_array=False)
    loader = DataLoader(
        ImageFolder(str(job.photos), transform),
        batch_size=job.batch_size,
        num_workers=DATALOADER_WORKERS,
        pin_memory=bool(gpus()),
    )
    outputs = [network(images) for images, _ in loader]
    return _measured(job, sum(map(len, outputs)))


class _RayNetwork:
    def __init__(self, job: Job, ours: str) -> None:
        self.network = OurNetwork(job) if ours else EagerNetwork(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"output": self.network(torch.from_numpy(batch["transformed_image"].copy()))}


def ray_data(job: Job, *, ours: str) -> dict[str, Any]:
    """`read_images`, `map` and `map_batches` with a pool of one actor."""
    import ray

    transform = transform_for(load(job).recipe.preprocessing, ours, from_array=True)

    def preprocess_image(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"transformed_image": np.asarray(transform(row["image"]))}

    outputs = (
        ray.data.read_images(str(job.photos), mode="RGB")
        .map(preprocess_image)
        .map_batches(
            _RayNetwork,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_gpus=gpus() or None,
            batch_size=job.batch_size,
            fn_constructor_args=(job, ours),
        )
    )
    images = sum(len(batch["output"]) for batch in outputs.iter_batches(batch_size=None))
    return _measured(job, images)


def daft(job: Job, *, ours: str) -> dict[str, Any]:
    """`from_glob_path`, download, decode, a function for each image, and a class for the network."""
    import daft
    from daft import DataType
    from daft.functions import decode_image, download

    preprocessing = load(job).recipe.preprocessing
    transform = transform_for(preprocessing, ours, from_array=True)
    crop = preprocessing.crop
    tensor = DataType.tensor(DataType.uint8(), (*crop, 3)) if ours else DataType.tensor(DataType.float32(), (3, *crop))

    @daft.cls(max_concurrency=1, gpus=gpus())
    class Network:
        def __init__(self) -> None:
            self.network = OurNetwork(job) if ours else EagerNetwork(job)

        @daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=job.batch_size)
        def embed(self, images: daft.Series) -> list[np.ndarray]:
            return list(self.network(torch.from_numpy(np.array(images.to_pylist()))))

    frame = daft.from_glob_path(str(job.photos / "**" / "*.jpg"))
    frame = frame.with_column("image", decode_image(download(frame["path"])))
    frame = frame.with_column(
        "transformed_image", frame["image"].apply(lambda image: np.asarray(transform(image)), return_dtype=tensor)
    )
    frame = frame.select(Network().embed(frame["transformed_image"]).alias("output"))
    return _measured(job, len(frame.to_arrow()))


ENGINES: dict[str, Callable[[Job], dict[str, Any]]] = {
    f"{name}{ours}": partial(engine, ours=ours)
    for ours in OURS
    for name, engine in (("dataloader", dataloader), ("ray_data", ray_data), ("daft", daft))
}

if __name__ == "__main__":
    engine_main(ENGINES)
