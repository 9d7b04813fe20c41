"""The examples of a training in a file, so that all its processes, and the run that goes on with it, have the very same."""

import json

import numpy as np
import pyarrow as pa

from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import join
from tlray.training.examples.examples import Examples

_NAME = "examples.arrow"


def encode_examples(examples: Examples, items: pa.Table) -> bytes:
    """Encode examples as one Arrow file.

    Args:
        examples: N of them.
        items: N rows of what is known of each besides, `uri` included.
    """
    targets = pa.array(examples.targets.reshape(-1))
    if examples.targets.ndim == 2:
        targets = pa.FixedSizeListArray.from_arrays(targets, examples.targets.shape[1])
    table = items.append_column("target", targets).append_column("split", pa.array(examples.splits_N))
    about = {"task": examples.task, "classes": list(examples.classes), "counts": dict(examples.counts)}
    table = table.replace_schema_metadata({b"tlray": json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_examples(folder: str, data: bytes) -> None:
    """Keep encoded examples in a run's folder."""
    open_store(folder).write(join(folder, _NAME), data)


def read_written(folder: str) -> tuple[Examples, pa.Table]:
    """Read the examples of a run's folder, and what else is known of each."""
    table = pa.ipc.open_file(pa.py_buffer(open_store(folder).read(join(folder, _NAME)).data)).read_all()
    about = json.loads(table.schema.metadata[b"tlray"])
    column = table["target"].combine_chunks()
    is_flat = not pa.types.is_fixed_size_list(column.type)
    targets = column.to_numpy() if is_flat else column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    examples = Examples(
        uris=table["uri"].combine_chunks(),
        targets=targets.copy(),
        splits_N=table["split"].to_numpy(),
        task=about["task"],
        classes=tuple(about["classes"]),
        rows_N=np.arange(len(table)),
        counts=about["counts"],
    )
    return examples, table.drop_columns(["target", "split"])
