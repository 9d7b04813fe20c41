"""A library made of a zoo: its published weights, those of files, and random ones."""

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
from torch import nn

from tlray.errors import BackboneError, ConfigError, WeightsError
from tlray.models.libraries.library import Pretrained, Request
from tlray.models.libraries.zoo.file_weights import FileWeights
from tlray.models.libraries.zoo.modules import build, converted, for_people, size_of
from tlray.models.libraries.zoo.undrawn import Undrawn, without_values
from tlray.models.libraries.zoo.zoo import Variant, Zoo
from tlray.models.weights.candidates import Candidate
from tlray.models.weights.choose import fit_of
from tlray.models.weights.digest import hash_weights
from tlray.models.weights.fit import shown
from tlray.models.weights.pickles import READ_ERRORS
from tlray.models.weights.spec import FetchFile, WeightsSpec

_AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Classifiers of GoogLeNet and Inception that only training runs."""


class TorchLibrary:
    """A library whose networks are torch modules.

    Args:
        zoo: what is known of its models.
    """

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        self.name = zoo.name

    def models(self) -> Sequence[str]:
        """Names of all its models, without tags."""
        return self.zoo.models()

    def has(self, model: str) -> bool:
        """Whether there is a model of this name; with a tag, whether it has published weights of that tag."""
        name, _, tag = model.partition(".")
        return name in self.models() and (not tag or self.zoo.entry_of(name, tag) is not None)

    def load(self, request: Request, fetch: FetchFile) -> Pretrained:
        """A network with its weights, the same for the same request in every process."""
        model, _, tag = request.model.partition(".")
        tagged = self._tagged(request.model, model, tag)
        spec = WeightsSpec.parse(request.weights)
        # Every value is drawn from the seed or overwritten; the caller's generator stays where it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(spec.location) if spec.kind == "random" else 0)
            if spec.kind in ("file", "package"):
                return FileWeights(self.zoo, request, model, spec).load(tagged, fetch)
            if spec.kind == "library":
                entry = self._published(model, tagged, spec)
                return self._sized(request, model, entry, spec, self._download(model, entry))
            entry = tagged if tagged is not None else self.zoo.default_entry(model)
            return self._sized(request, model, entry, spec, build(self.zoo, model, entry, Variant(), drawn=True))

    def _tagged(self, backbone: str, model: str, tag: str) -> str | None:
        """The entry that the backbone's own name has as a tag."""
        if not tag:
            return None
        entry = self.zoo.entry_of(model, tag)
        if entry is None:
            raise BackboneError(
                f"there is no backbone '{self.name}:{backbone}'; weights of {self.name}:{model}: "
                f"{', '.join(self.zoo.entries(model)) or 'none'}"
            )
        return entry

    def _published(self, model: str, tagged: str | None, spec: WeightsSpec) -> str:
        """The entry that is asked for, checked."""
        zoo, published = self.zoo, self.zoo.entries(model)
        usual = tagged if tagged is not None else zoo.default_entry(model)
        entry = usual if spec.location == "default" else zoo.entry_of(model, spec.location)
        if entry is None or entry not in published:
            folder = f"; a local folder is written ./{spec.location}" if Path(spec.location).exists() else ""
            raise WeightsError(
                f"{self.name}:{model} has no weights {spec.location!r}; it has: {', '.join(published) or 'none'}. "
                f"Name one of them, a file (path or URI), package:<name> or random:<seed>{folder}"
            )
        if tagged not in (None, entry):
            raise WeightsError(f"backbone {self.name}:{model}.{tagged} contradicts weights {spec.location!r}; give one")
        return entry

    def _download(self, model: str, entry: str) -> nn.Module:
        try:
            with Undrawn():
                module = self.zoo.download(model, entry)
        except (*READ_ERRORS, safetensors.SafetensorError) as error:
            raise WeightsError(
                f"weights {self.zoo.qualified(model, entry)} could not be had from {self.zoo.source(model, entry)}: {error}; "
                "check the network, or give a copy of the file as recipe.weights (a path or URI of safetensors or a state dict)"
            ) from error
        for auxiliary in _AUXILIARY:
            if getattr(module, auxiliary, None) is not None:
                setattr(module, auxiliary, None)
        return module.float().eval()

    def _sized(self, request: Request, model: str, entry: str, spec: WeightsSpec, module: nn.Module) -> Pretrained:
        """A module that is complete, brought to the size of images that is asked for."""
        zoo, sha256, notes = self.zoo, hash_weights(module), []
        if request.crop is not None and not zoo.takes(module, request.crop):
            native = Candidate("", module.state_dict())
            module = build(zoo, model, entry, Variant(crop=request.crop))
            fit = fit_of(native, module, converted(zoo, model, module), ())
            if fit.unfilled:
                usual = size_of(zoo.preprocessing(model, entry, module))
                raise ConfigError(
                    f"{self.name}:{model} cannot take images of crop {request.crop[0]}x{request.crop[1]}: "
                    f"{'; '.join(fit.problems())}; expected {usual}, as its weights say"
                )
            fit.load(module)
            notes = for_people(f"{self.name}:{request.model}", fit.notes(len(native.state)))
        published = spec.kind == "library"
        unfilled = without_values(module) if published else ()
        return Pretrained(
            backbone=f"{self.name}:{model if published else request.model}",
            weights=zoo.qualified(model, entry) if published else spec.text,
            weights_sha256=sha256,
            module=module,
            preprocessing=zoo.preprocessing(model, entry, module),
            layout=zoo.layout(module),
            classifiers=zoo.classifiers(module),
            classes=zoo.class_names(model, entry, module) if published else None,
            unfilled=unfilled,
            misfit=f"{zoo.qualified(model, entry)} has no values for {shown(unfilled)}; use other weights, or another layer",
            notes=notes,
        )
