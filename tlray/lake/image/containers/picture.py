"""What the readers of all image formats have in common: their result, and their errors."""

from dataclasses import dataclass

from tlray.errors import ImageError, ImageErrorCode

Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels; right and bottom lie just outside."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The part of an image file that its pixels depend on.

    A decoder never sees the rest (text, colour profiles, thumbnails, comments, later frames), so that nothing in it can make
    an image fail or take memory.

    Attributes:
        data: a file of the same format, with the first picture alone.
        size: (width, height) in pixels that it declares, before it is turned; None where the decoder finds out for itself
            before it makes room for pixels.
        orientation: by EXIF or XMP, 1 to 8; other values mean 1.
        shown: the part of the decoded picture that is shown, before it is turned; None is all of it.
        drawn: the part of the canvas that the first frame of an animation draws; the rest is transparent. None is all of it.
        other_ends: the same file with other ends, which must give the same pixels if none is missing; none where the file says
            itself that it is complete.
        can_shrink: whether the decoder can make it smaller while it decodes.
        too_slow: why a picture of this size and kind is not decoded; None where it is.
    """

    data: bytes
    size: tuple[int, int] | None = None
    orientation: int = 1
    shown: Rectangle | None = None
    drawn: Rectangle | None = None
    other_ends: tuple[bytes, ...] = ()
    can_shrink: bool = False
    too_slow: str | None = None


def truncated(detail: str) -> ImageError:
    """The error for a file that ends too early."""
    return ImageError(ImageErrorCode.TRUNCATED, detail)


def corrupt(detail: str) -> ImageError:
    """The error for a damaged file."""
    return ImageError(ImageErrorCode.CORRUPT, detail)


def unsupported(detail: str) -> ImageError:
    """The error for a whole file of a kind that is not read."""
    return ImageError(ImageErrorCode.UNSUPPORTED, detail)
