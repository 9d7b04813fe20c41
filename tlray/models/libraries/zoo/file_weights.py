"""Weights of a file: which of its tensors are a model's, how the model is built for them, and how images were prepared."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from tlray.errors import ConfigError, WeightsError
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.libraries.zoo.modules import build, converted, described, for_people
from tlray.models.libraries.zoo.zoo import Variant, Zoo
from tlray.models.weights.choose import choose, fit_of, misfit
from tlray.models.weights.files import WeightsFile, read_weights
from tlray.models.weights.fit import Fit, shown
from tlray.models.weights.spec import FetchFile, WeightsSpec
from tlray.recipe import Preprocessing

Origin = Literal["said", "published", "assumed"]

_ANY_CROP = (1, 1)
"""No network is built for it: one that takes it takes all sizes. Position embeddings of a file are brought to the size that is
asked for, where there is one, and not first to the network's usual one and from there to another."""

_MOST_UNFILLED = 0.5
"""The largest share of a network's tensors that may be missing: where more are missing, the file is another network's, whatever
the taps need."""


@dataclass(frozen=True)
class FileWeights:
    """Loads one model's weights from a file.

    Attributes:
        zoo: of the model.
        request: what is asked for.
        model: its name, without a tag.
        spec: of the weights, of kind `file` or `package`.
    """

    zoo: Zoo
    request: Request
    model: str
    spec: WeightsSpec

    def load(self, tagged: str | None, fetch: FetchFile) -> Pretrained:
        """The model with the file's tensors.

        Args:
            tagged: the entry that the backbone's name has as a tag.
            fetch: brings the URI or path of a file to a local path.

        Raises:
            WeightsError: the file is missing, holds no weights, or they do not fit.
            ConfigError: the network cannot take images of the size that is asked for.
        """
        zoo, model = self.zoo, self.model
        file = read_weights(self.spec, fetch)
        is_described = zoo.describes(model, file.config)
        named = {name: entry for name in self.spec.names if (entry := zoo.entry_of(model, name)) is not None}
        entry, origin = self._entry(next(iter(named.values()), tagged), file)
        config = file.config if is_described else None
        module, fit, outputs = self._fitted(file, entry, config, [name for name in self.spec.names if name not in named])
        message = misfit(fit, self.spec, file, module)
        if (fit.strange and not self.spec.is_partial) or len(fit.unfilled) > _MOST_UNFILLED * len(module.state_dict()):
            raise WeightsError(message)
        sha256 = fit.load(module)
        preprocessing = zoo.preprocessing(model, entry, module)
        notes = _notes(file, fit, outputs)
        if not (is_described or self.request.is_prepared):
            notes += self._on_preparation(entry, origin, file, preprocessing)
        return Pretrained(
            backbone=f"{zoo.name}:{self.request.model}",
            weights=self.spec.text,
            weights_sha256=sha256,
            module=module,
            preprocessing=preprocessing,
            layout=zoo.layout(module),
            classifiers=zoo.classifiers(module),
            classes=zoo.class_names(model, entry, module) if is_described else None,
            unfilled=fit.unfilled,
            misfit=message,
            notes=notes,
        )

    def _entry(self, said: str | None, file: WeightsFile) -> tuple[str, Origin]:
        """The entry whose configuration the file has, and how that is known."""
        if said is not None:
            return said, "said"
        published = None if self.request.is_prepared else self.zoo.published_as(self.model, file.path, file.name)
        return (published, "published") if published is not None else (self.zoo.default_entry(self.model), "assumed")

    def _fitted(
        self, file: WeightsFile, entry: str, config: Mapping[str, object] | None, places: list[str]
    ) -> tuple[nn.Module, Fit, int | None]:
        """A module for the file's tensors, how they fit it, and how many outputs its classifier has where these are others."""
        zoo, model = self.zoo, self.model
        variant = Variant(self.request.crop, config=config)
        module = build(zoo, model, entry, variant)
        heads = tuple({name.partition(".")[0]: None for name in zoo.classifier_names(module)})
        fit = choose(self.spec, places, file, module, converted(zoo, model, module), heads)
        outputs = self._other_outputs(module, fit)
        if outputs is not None:
            variant = replace(variant, outputs=outputs)
            module = build(zoo, model, entry, variant)
            fit = fit_of(fit.candidate, module, converted(zoo, model, module), heads)
        if fit.resized and variant.crop is not None and zoo.takes(module, _ANY_CROP):
            with contextlib.suppress(ConfigError):  # where it cannot be built for one size alone
                sized = build(zoo, model, entry, variant, for_crop_alone=True)
                return sized, fit_of(fit.candidate, sized, converted(zoo, model, sized), heads), outputs
        return module, fit, outputs

    def _other_outputs(self, module: nn.Module, fit: Fit) -> int | None:
        """How many outputs the file's classifier has, where that is all that tells it from the module's."""
        ours, theirs = module.state_dict(), fit.candidate.state
        names = [f"{name}.weight" for name in self.zoo.classifier_names(module)]
        if not names or not all(name in theirs and theirs[name].shape[1:] == ours[name].shape[1:] for name in names):
            return None
        counts = {theirs[name].shape[0] for name in names} - {ours[name].shape[0] for name in names}
        return counts.pop() if len(counts) == 1 else None

    def _on_preparation(self, entry: str, origin: Origin, file: WeightsFile, preprocessing: Preprocessing) -> list[str]:
        name, prepared = self.zoo.qualified(self.model, entry), described(preprocessing)
        if origin == "said":
            return []
        if origin == "published":
            return [
                f"{file.where} has the name or the content of the file of {name}: images are prepared as for it ({prepared})"
            ]
        others = [other for other in self.zoo.entries(self.model) if other != entry]
        name_it = f"name the weights that they are, as {file.where}#{others[0]}, or " if others else ""
        return [
            f"{file.where} does not say how its images are to be prepared; assumed: as for {name} ({prepared}). "
            f"Where that is wrong, {name_it}give recipe.preprocessing"
        ]


def _notes(file: WeightsFile, fit: Fit, outputs: int | None) -> list[str]:
    notes = fit.notes(sum(len(table) for table in file.tables.values()))
    if file.unread:
        notes.append(f"left out Python objects, whose code is not run ({shown(file.unread)})")
    if outputs is not None:
        notes.append(f"its classifier has {outputs} outputs")
    return for_people(file.where, notes)
