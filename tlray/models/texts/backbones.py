"""Backbones of texts: from what a user asks for to a full recipe with a loaded model, and back from the recipe on a worker."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from tlray.config import RecipeConfig
from tlray.errors import BackboneError, ConfigError, SourceError, WeightsError
from tlray.models.texts.sentence_model import SentenceModel, open_sentence_model
from tlray.models.texts.static_model import StaticModel, open_static_model
from tlray.models.texts.text_model import TextBackbone, TextModel
from tlray.models.texts.word_model import WordModel, sif_weights
from tlray.models.texts.word_vectors import WordVectors, open_word_vectors
from tlray.models.weights.files import package_path
from tlray.models.weights.spec import FetchFile
from tlray.recipe import Precision
from tlray.recipe.texts import TEXT_LIBRARIES, TEXT_TAP, TextPool, TextRecipe, Tokens

_log = logging.getLogger(__name__)

WORDS, SENTENCES, STATIC = TEXT_LIBRARIES
_PACKAGE = "package:"
_FREQUENCY_BYTES = 2**30


def resolve_text_backbone(config: RecipeConfig, fetch: FetchFile) -> TextBackbone:
    """Complete what the user asks for: weights, tokens, hash. Runs on the driver.

    What was assumed, left out or changed is logged, once, and kept in the backbone's notes.

    Args:
        config: the user's `recipe`.
        fetch: brings the URI or path of a file to a local path.

    Raises:
        BackboneError: no such library, or a pooling or key that it does not have.
        WeightsError: weights missing, damaged, or of another hash than `config.weights_sha256`.
        ConfigError: keys that are for images.
    """
    library, _, location = config.backbone.strip().partition(":")
    _check_keys(config, library)
    if config.weights != "default":
        if location:
            raise BackboneError(
                f"backbone {config.backbone} names its weights, and recipe.weights others ({config.weights}); give one"
            )
        location = config.weights
    if not location:
        raise BackboneError(f"backbone {config.backbone!r} names no weights; expected {library}:<file or folder>")
    backbone = _RESOLVERS[library](config, location, fetch)
    if config.weights_sha256 not in (None, backbone.recipe.weights_sha256):
        raise WeightsError(
            f"{location} has the hash {backbone.recipe.weights_sha256}, expected weights_sha256 {config.weights_sha256}"
        )
    for note in backbone.notes:
        _log.warning("%s", note)
    return backbone


def load_text_backbone(recipe: TextRecipe, fetch: FetchFile) -> TextBackbone:
    """Make the model of a recipe again, on a worker.

    Args:
        recipe: from `resolve_text_backbone`.
        fetch: as there.

    Raises:
        WeightsError: the weights are missing, damaged, or have another hash than the recipe says.
    """
    library = recipe.backbone.partition(":")[0]
    model: TextModel
    if library == WORDS:
        vectors = _vectors(recipe.weights, fetch)
        probability_V = _probabilities(vectors, recipe.tokens.frequencies, fetch) if recipe.pool == "sif" else None
        model, sha256 = _word_model(vectors, recipe.pool, recipe.tokens, probability_V), vectors.sha256
        if probability_V is not None and _hash(probability_V) != recipe.tokens.frequencies_sha256:
            raise WeightsError(
                f"the frequencies of {recipe.tokens.frequencies or recipe.weights} are not those of the recipe; bring them "
                "back, or extract to a new table"
            )
    elif library == SENTENCES:
        found = open_sentence_model(_folder(recipe.weights), recipe.tokens.prompt, recipe.precision.compute)
        model, sha256 = found, found.sha256
    else:
        static = open_static_model(_folder(recipe.weights))
        model, sha256 = static, static.sha256
    if sha256 != recipe.weights_sha256:
        raise WeightsError(
            f"{recipe.weights} has the hash {sha256}, but the recipe says {recipe.weights_sha256}; "
            "bring back the weights of the recipe, or extract to a new table"
        )
    return TextBackbone(recipe, model)


def _check_keys(config: RecipeConfig, library: str) -> None:
    """Refuse keys of the recipe that have no meaning for texts.

    Raises:
        ConfigError: names them.
    """
    given = [f"preprocessing.{name}" for name, value in config.preprocessing.model_dump(exclude_none=True).items()]
    given += ["taps"] if config.taps else []
    given += [f"pool {config.pool}"] if config.pool not in (("avg", "max", "sif") if library == WORDS else ("avg",)) else []
    said = config.tokens.said
    if library != WORDS:
        given += [f"tokens.{name}" for name in ("split", "lowercase", "frequencies", "a") if name in said]
    if library != SENTENCES and "prompt" in said:
        given.append("tokens.prompt")
    if config.pool != "sif" and library == WORDS:
        given += [f"tokens.{name} (of pool sif)" for name in ("frequencies", "a") if name in said]
    if given:
        raise ConfigError(f"recipe.{given[0]} is not for {config.backbone.partition(':')[0]}, which embeds texts; leave it out")


def _resolve_words(config: RecipeConfig, location: str, fetch: FetchFile) -> TextBackbone:
    vectors = _vectors(location, fetch)
    lowercase = vectors.are_lowercase if config.tokens.lowercase is None else config.tokens.lowercase
    pool: TextPool = "sif" if config.pool == "sif" else "max" if config.pool == "max" else "avg"
    probability_V = _probabilities(vectors, config.tokens.frequencies, fetch) if pool == "sif" else None
    tokens = Tokens(
        split=config.tokens.split or "words",
        lowercase=lowercase,
        a=None if probability_V is None else config.tokens.a,
        frequencies=config.tokens.frequencies,
        frequencies_sha256=None if probability_V is None else _hash(probability_V),
    )
    notes = list(vectors.notes)
    if config.tokens.lowercase is None:
        notes.append(
            f"no word of {location} has a capital letter, so texts are made lower case"
            if lowercase
            else f"words of {location} have capital letters, so texts are taken as they are"
        )
    recipe = TextRecipe(
        backbone=f"{WORDS}:{vectors.kind}",
        weights=location,
        weights_sha256=vectors.sha256,
        taps=(TEXT_TAP,),
        normalize=config.normalize,
        precision=_precision(config, only_fp32=True),
        pool=pool,
        tokens=tokens,
    )
    return TextBackbone(recipe, _word_model(vectors, pool, tokens, probability_V), tuple(notes))


def _resolve_sentences(config: RecipeConfig, location: str, fetch: FetchFile) -> TextBackbone:  # noqa: ARG001
    precision = _precision(config, only_fp32=False)
    model: SentenceModel = open_sentence_model(_folder(location), config.tokens.prompt, precision.compute)
    tokens = Tokens(split="model", most=model.most_tokens, prompt=model.prompt)
    recipe = _of_model(config, f"{SENTENCES}:{model.architecture}", location, model.sha256, precision, tokens)
    return TextBackbone(recipe, model, (*model.notes, *model.empty_unfilled()))


def _resolve_static(config: RecipeConfig, location: str, fetch: FetchFile) -> TextBackbone:  # noqa: ARG001
    model: StaticModel = open_static_model(_folder(location))
    precision = _precision(config, only_fp32=True)
    recipe = _of_model(config, f"{STATIC}:static", location, model.sha256, precision, Tokens(split="model"))
    return TextBackbone(recipe, model)


_RESOLVERS = {WORDS: _resolve_words, SENTENCES: _resolve_sentences, STATIC: _resolve_static}


def _of_model(
    config: RecipeConfig, backbone: str, location: str, sha256: str, precision: Precision, tokens: Tokens
) -> TextRecipe:
    return TextRecipe(
        backbone=backbone,
        weights=location,
        weights_sha256=sha256,
        taps=(TEXT_TAP,),
        normalize=config.normalize,
        precision=precision,
        pool="model",
        tokens=tokens,
    )


def _precision(config: RecipeConfig, *, only_fp32: bool) -> Precision:
    """The precision: fp32 unless another one is asked for, where there is a network that could compute by it.

    Raises:
        ConfigError: another one is asked for, and there is none.
    """
    given = config.precision
    compute = given.compute if "compute" in given.model_fields_set else "fp32"
    if compute == "int8":
        raise ConfigError("recipe.precision.compute is int8, which is for networks of images; give fp32 or bf16")
    if only_fp32 and compute != "fp32":
        raise ConfigError(
            f"recipe.precision.compute is {compute}, but {config.backbone} only adds vectors, at fp32; leave it out"
        )
    return Precision(compute=compute, storage=given.storage)


def _word_model(vectors: WordVectors, pool: TextPool, tokens: Tokens, probability_V: np.ndarray | None) -> WordModel:
    weights_V = None
    if probability_V is not None:
        assert tokens.a is not None
        weights_V = sif_weights(probability_V, tokens.a)
    return WordModel(vectors, pool, tokens, weights_V)


def _vectors(location: str, fetch: FetchFile) -> WordVectors:
    return open_word_vectors(_file(location, fetch), location)


def _file(location: str, fetch: FetchFile) -> Path:
    """A file on this machine: local, brought from a store, or within an installed package."""
    if location.startswith(_PACKAGE):
        path = package_path(location.removeprefix(_PACKAGE))
    else:
        try:
            path = fetch(location)
        except (FileNotFoundError, SourceError) as error:
            raise WeightsError(f"there is no file {location}: {error}") from error
    if not path.is_file():
        raise WeightsError(f"there is no file {location}; expected one of word vectors")
    return path


def _folder(location: str) -> Path | str:
    """A folder on this machine; a text that is none stays: the name of a model on the hub."""
    if location.startswith(_PACKAGE):
        return package_path(location.removeprefix(_PACKAGE))
    path = Path(location.removeprefix("file://")).expanduser()
    if path.is_dir():
        return path.resolve()
    if "://" in location or location.startswith(("/", ".", "~")):
        raise WeightsError(
            f"there is no folder {location}; expected one on this machine and on every worker, or package:<name>"
        )
    return location


def _probabilities(vectors: WordVectors, frequencies: str | None, fetch: FetchFile) -> np.ndarray:
    """The probability of each word of a vocabulary: its count by the sum of all counts, float64; of one without count, 0.

    Raises:
        WeightsError: nobody says how frequent the words are, or the file is none of counts.
    """
    if frequencies is None:
        if vectors.counts_V is None:
            raise WeightsError(
                "recipe.pool is sif, which weighs words by their frequencies, and the vectors come without; give a file with a "
                "word and its count on each line (word2vec's -save-vocab, GloVe's vocab.txt) as recipe.tokens.frequencies"
            )
        counts_V = vectors.counts_V.astype(np.float64)
        of_file: np.ndarray = counts_V / max(1.0, counts_V.sum())
        return of_file
    path = _file(frequencies, fetch)
    if path.stat().st_size > _FREQUENCY_BYTES:
        raise WeightsError(f"{frequencies} has {path.stat().st_size} bytes; expected a file of words and counts")
    probability_V, total = np.zeros(len(vectors.words), np.float64), 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            word, _, count = line.rstrip(b" \r\n").rpartition(b"\t" if b"\t" in line else b" ")
            if not word or not count.isdigit():
                raise WeightsError(f"{frequencies}, line {number}: expected a word, a space and its count, found {line[:60]!r}")
            total += int(count)
            position = vectors.index.get(word.decode(errors="surrogateescape"))
            if position is not None:
                probability_V[position] = int(count)
    if not probability_V.any():
        raise WeightsError(
            f"{frequencies} has none of the words of the vectors; give the counts of the corpus that they are of"
        )
    found: np.ndarray = probability_V / total
    return found


def _hash(probability_V: np.ndarray) -> str:
    return hashlib.sha256(probability_V.astype("<f8").tobytes()).hexdigest()
