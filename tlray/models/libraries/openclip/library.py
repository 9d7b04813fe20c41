"""The library `openclip`: what is asked of it before open_clip is imported, which takes seconds."""

from collections.abc import Sequence

from tlray.extras import require
from tlray.models.libraries.library import Pretrained, Request, TextSide
from tlray.models.weights.spec import FetchFile


class OpenClip:
    """open_clip's models: `ViT-B-32/laion2b_s34b_b79k` (a model and its tag), `./folder`, `hf-hub:<organisation>/<name>`.

    In a recipe the tag is in the weights, and a folder's configuration is named, as folders move.
    """

    name = "openclip"

    def models(self) -> Sequence[str]:
        """None, as any folder or repository may be one; a wrong name is answered with open_clip's own when it is loaded."""
        return ()

    def has(self, model: str) -> bool:
        """Whether it may be a model; only open_clip tells."""
        return bool(model)

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """A network with its weights; see `tlray.models.libraries.library.Library.load`."""
        require("openclip", "open_clip", what=f"backbone openclip:{request.model}")
        from tlray.models.libraries.openclip.load import load

        return load(request, fetch)

    def text_side(self, request: Request, fetch: FetchFile) -> TextSide | None:
        """See `tlray.models.libraries.library.LibraryOfTexts.text_side`."""
        require("openclip", "open_clip", what=f"backbone openclip:{request.model}")
        from tlray.models.libraries.openclip.load import text_side

        return text_side(request, fetch)


def library() -> OpenClip:
    """open_clip, as a library of backbones."""
    return OpenClip()
