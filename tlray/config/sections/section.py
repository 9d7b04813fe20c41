"""What every config model is, and the types that flags and files share."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt

FailureCode = Literal[
    "not_found",
    "empty",
    "too_large",
    "not_an_image",
    "truncated",
    "corrupt",
    "unsupported",
    "bomb",
    "fetch_failed",
    "non_finite",
    "no_images",
    "unknown_words",
]
"""The values of `tlray.errors.ImageErrorCode`, as flags take them."""


def _single(value: Any) -> Any:
    """Unwrap a list of one: a flag that may be given twice arrives as a list even when it is given once."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


Side = Annotated[PositiveInt | tuple[PositiveInt, PositiveInt] | None, BeforeValidator(_single)]
"""A length in pixels for both sides, or height and width."""

Part = TypeVar("Part", bound="Section")


class Section(BaseModel):
    """Base of every config model: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def part(self, base: type[Part]) -> Part:
        """The keys of one of the sections that this one is made of, for a function that needs no others."""
        return base.model_validate({name: getattr(self, name) for name in base.model_fields})
