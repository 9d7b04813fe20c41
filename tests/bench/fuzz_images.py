"""Damaged image files through the decode path, in a process of limited memory: no crash, no hang, no memory over the limit.

    python -m tests.bench.fuzz_images --minutes 60 --seed 1 --memory-gib 2

What crashes, hangs or goes over the memory is kept in `--keep`, and makes the exit code 1. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from tests.bench.fuzz_files import FORMATS, damage, make_file
from tlray.errors import ImageError
from tlray.lake.image.decode import decode_image
from tlray.recipe import Preprocessing

PREPROCESSING = Preprocessing(resize=(64, 64), crop=(56, 56), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
HANG_SECONDS = 10.0
"""Of processor time, so that a busy machine makes no hangs."""

_GIVE_UP_SECONDS = 600.0
_OVER_MEMORY, _OTHER = "over_memory", "not_an_image_error"
_POOL = 50  # files of a format that are at hand at once; others replace them


def decode_all(requests: Connection, memory_bytes: int, max_pixels: int, errors_path: str) -> None:
    """The child: decode what it is sent and answer with the code, until nothing comes any more."""
    warnings.simplefilter("ignore")
    with Path(errors_path).open("ab") as errors:
        os.dup2(errors.fileno(), 2)
    decode_image(make_file("JPEG", 0), PREPROCESSING, max_pixels=max_pixels)  # loads all libraries
    decode_image(make_file("AVIF", 0), PREPROCESSING, max_pixels=max_pixels)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            data = requests.recv_bytes()
        except EOFError:
            return
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
        before_bytes = _high_water_bytes()
        requests.send((_code(data, max_pixels), _high_water_bytes() - before_bytes))


def _high_water_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _code(data: bytes, max_pixels: int) -> str:
    try:
        image = decode_image(data, PREPROCESSING, max_pixels=max_pixels)
    except ImageError as error:
        return _OVER_MEMORY if isinstance(error.__cause__, MemoryError) else str(error.code)
    except MemoryError:
        return _OVER_MEMORY
    except Exception:  # noqa: BLE001 - what the decode path must never let through
        traceback.print_exc()
        return _OTHER
    return "ok" if image.pixels_HWC.shape == (56, 56, 3) else _OTHER


class Child:
    """The process that decodes; started again when it was lost."""

    def __init__(self, memory_bytes: int, max_pixels: int, errors_path: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=decode_all, args=(theirs, memory_bytes, max_pixels, errors_path), daemon=True)
        self.process.start()
        theirs.close()

    def processor_seconds(self) -> float:
        """What the process used so far; 0 where it is gone."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def result(self, data: bytes) -> tuple[str, int]:
        """The code of an input, or `crash` or `hang`, and the bytes of memory that it took at most."""
        try:
            before, began = self.processor_seconds(), time.monotonic()
            self.connection.send_bytes(data)
            while not self.connection.poll(1):
                waited = time.monotonic() - began
                if self.processor_seconds() - before > HANG_SECONDS or waited > _GIVE_UP_SECONDS:
                    return "hang", 0
            code, peak_bytes = self.connection.recv()
        except (EOFError, OSError):
            return "crash", 0
        return str(code), int(peak_bytes)

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Files:
    """Small files of every format, replaced one by one, so that all of them come up in time."""

    def __init__(self, choose: random.Random, files_per_format: int) -> None:
        self._choose, self._files_per_format = choose, files_per_format
        self._pools: dict[str, list[bytes]] = {name: [] for name in FORMATS}

    def two(self) -> tuple[str, bytes, bytes]:
        """A format, and two files of it."""
        name = self._choose.choice(FORMATS)
        pool = self._pools[name]
        if len(pool) < _POOL or self._choose.random() < 0.02:
            new = make_file(name, self._choose.randrange(self._files_per_format))
            pool[:] = [*pool[len(pool) >= _POOL :], new]
        return name, self._choose.choice(pool), self._choose.choice(pool)


def fuzz(options: argparse.Namespace) -> dict[str, object]:
    """Damage and decode until the time is up."""
    choose = random.Random(options.seed)
    files = Files(choose, options.files)
    start = (int(options.memory_gib * 2**30), options.max_pixels, str(options.errors))
    child = Child(*start)
    codes: Counter[str] = Counter()
    by_format: dict[str, Counter[str]] = {name: Counter() for name in FORMATS}
    mutations = size_bytes = most_bytes = 0
    began = said = time.monotonic()
    while time.monotonic() - began < options.minutes * 60:
        name, one, other = files.two()
        data = damage(one, other, choose)
        code, peak_bytes = child.result(data)
        codes[code] += 1
        by_format[name][code] += 1
        mutations, size_bytes, most_bytes = mutations + 1, size_bytes + len(data), max(most_bytes, peak_bytes)
        if (code in ("crash", "hang", _OVER_MEMORY, _OTHER) or peak_bytes > options.note_gib * 2**30) and options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{code}-{peak_bytes >> 20}MiB-{name}-{options.seed}-{mutations}").write_bytes(data)
        if code in ("crash", "hang"):
            child.end()
            child = Child(*start)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{mutations} mutations, {size_bytes / 1e6:.0f} MB, {dict(codes)}", file=sys.stderr, flush=True)
    child.end()
    found = {
        key: codes.pop(name, 0) for key, name in (("crashes", "crash"), ("hangs", "hang"), (_OVER_MEMORY,) * 2, (_OTHER,) * 2)
    }
    return {
        "mutations": mutations,
        "bytes": size_bytes,
        **found,
        "peak_bytes": most_bytes,
        "by_code": dict(codes),
        "by_format": {name: dict(counts) for name, counts in by_format.items()},
        "seconds": round(time.monotonic() - began),
        "seed": options.seed,
    }


def main() -> int:
    """Read the flags, run, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-gib", type=float, default=2, help="for decoding, beside what the libraries themselves take")
    parser.add_argument("--max-pixels", type=int, default=2**25)
    parser.add_argument("--files", type=int, default=1000, help="different files of each format")
    parser.add_argument("--note-gib", type=float, default=1, help="keep inputs that take more memory")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that go wrong")
    parser.add_argument("--errors", type=Path, default=Path(os.devnull), help="a file for what decoders write to stderr")
    result = fuzz(parser.parse_args())
    print(json.dumps(result))
    return int(any(result[key] for key in ("crashes", "hangs", _OVER_MEMORY, _OTHER)))


if __name__ == "__main__":
    sys.exit(main())
