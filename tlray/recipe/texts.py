"""The recipe of a table of texts: word vectors or a sentence encoder, and how a text becomes the tokens that it takes."""

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from tlray.recipe.base import BaseRecipe, Strict

Split = Literal["words", "whitespace", "model"]
"""`words`: runs of letters, marks, digits and `_`; `whitespace`: what is between white space; `model`: its own tokeniser."""

TextPool = Literal["avg", "max", "sif", "model"]
"""How word vectors become one; `model`: as the sentence encoder does it."""

TEXT_TAP = "text"
"""The only layer of a text encoder that is kept."""


TEXT_LIBRARIES = ("gensim", "sentence-transformers", "model2vec")
"""What stands before the colon of backbones of texts."""


def is_of_texts(backbone: str) -> bool:
    """Whether a backbone embeds texts, by the library before its colon."""
    return backbone.strip().partition(":")[0] in TEXT_LIBRARIES


class Tokens(Strict):
    """From a text to the tokens that have vectors.

    Attributes:
        split: how a text is cut.
        lowercase: whether tokens are then made lower case (Python's `str.lower`).
        most: tokens of a text that count, the sentence encoder's limit; None for all.
        prompt: put before each text, as some sentence encoders want it.
        a: of SIF (Arora, Liang and Ma, A Simple but Tough-to-Beat Baseline for Sentence Embeddings, 2017): a word of
            probability p weighs a / (a + p).
        frequencies: where the words' frequencies came from; for people, not part of the fingerprint.
        frequencies_sha256: of the probabilities of the vocabulary's words.
    """

    split: Split
    lowercase: bool = False
    most: PositiveInt | None = None
    prompt: str = ""
    a: PositiveFloat | None = None
    frequencies: str | None = None
    frequencies_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class TextRecipe(BaseRecipe):
    """Everything that changes the numbers of a text's embedding; no picture is involved, so no rule about pictures is.

    Attributes:
        pool: how the vectors of a text's tokens become one.
        tokens: how a text becomes tokens.
        text_rule: version of the rule from bytes to text (`tlray.lake.source.texts.decode`).
        format: version of this document.
    """

    not_identity: ClassVar[dict[str, Any]] = {"weights": True, "tokens": {"frequencies"}}

    pool: TextPool
    tokens: Tokens
    text_rule: Literal[1] = 1
    format: Literal[3] = 3

    @property
    def measures(self) -> tuple[str, ...]:
        """Columns of measures: the share of unknown tokens of word vectors, or that of tokens beyond an encoder's limit."""
        if self.tokens.split != "model":
            return (UNKNOWN_FRACTION,)
        return () if self.tokens.most is None else (CUT_FRACTION,)


UNKNOWN_FRACTION = "unknown_fraction"
CUT_FRACTION = "cut_fraction"
