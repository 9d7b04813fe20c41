"""The library `hf`: what is asked of it before transformers is imported, which takes seconds."""

from collections.abc import Sequence

from tlray.extras import require
from tlray.models.libraries.library import Pretrained, Request, TextSide
from tlray.models.weights.spec import FetchFile


class HuggingFace:
    """Vision models of transformers: a folder, a repository of the hub, or a kind of model with weights of its own.

    `hf:./folder` becomes `hf:<kind>` in a recipe, as a folder may move; `hf:<organisation>/<name>` stays, and the recipe's
    weights have the commit.
    """

    name = "hf"

    def models(self) -> Sequence[str]:
        """None, as any folder or repository may be one."""
        return ()

    def has(self, model: str) -> bool:
        """Whether it may be a model; only the folder or the hub tells."""
        return bool(model)

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """A network with its weights; see `tlray.models.libraries.library.Library.load`."""
        require("hf", "transformers", "huggingface_hub", what=f"backbone hf:{request.model}")
        from tlray.models.libraries.huggingface.load import load

        return load(request, fetch)

    def text_side(self, request: Request, fetch: FetchFile) -> TextSide | None:
        """See `tlray.models.libraries.library.LibraryOfTexts.text_side`."""
        require("hf", "transformers", "huggingface_hub", what=f"backbone hf:{request.model}")
        from tlray.models.libraries.huggingface.load import text_side

        return text_side(request, fetch)


def library() -> HuggingFace:
    """transformers, as a library of backbones."""
    return HuggingFace()
