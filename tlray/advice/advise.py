"""`tlray advise`: from its config to its result.

Shape legend: N images of the sample.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlray.advice.inputs.candidates import Candidate, Embedder, find_candidates
from tlray.advice.inputs.sample import Sample, take_sample
from tlray.advice.measuring.budget import Clock, estimate_of, fit_to_budget
from tlray.advice.measuring.evidence import data_of, floors_of, likeness_of, row_of
from tlray.advice.measuring.probes import learning_curve
from tlray.advice.measuring.race import Finish, Racer, run_race
from tlray.advice.measuring.trials import Attempt, seconds_per_image, try_out
from tlray.advice.verdict import judge as verdict
from tlray.advice.verdict.commands import head_commands, network_commands
from tlray.advice.verdict.judge import Strategy
from tlray.config import AdviseConfig
from tlray.errors import ConfigError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.progress import readable_seconds, say
from tlray.recipe import Preprocessing
from tlray.version import __version__

KIND = "advice"
"""Of the document, by which `tlray report` knows it."""


def advise(config: AdviseConfig) -> dict[str, Any]:
    """Say which network, layer and training suit labelled images, by trying them on a sample.

    Args:
        config: of the command.

    Returns:
        The command's JSON object.

    Raises:
        ConfigError: the input is wrong, or the minutes are too few for one candidate.
        TooManyFailuresError: more of the sample cannot be read than allowed.
    """
    clock = Clock(config.minutes)
    _check_out(config.out)
    sample = take_sample(config)
    say(
        f"{len(sample)} of {sample.labelled} labelled images, {len(sample.examples.classes)} classes; "
        f"{sum(sample.failures.values())} could not be read"
    )
    candidates, left_out = find_candidates(config)
    floors, probe_seconds = floors_of(sample, config.seed)
    embedders = _embedders(sample, candidates)
    estimate = estimate_of(embedders, len(sample), probe_seconds)
    say(f"estimated {readable_seconds(estimate['seconds'])} for all candidates on all images of the sample, trials apart")
    result: dict[str, Any] = {
        "kind": KIND,
        "made_with": __version__,
        "source": to_uri(config.source.uri),
        "labels": config.labels,
        "sample": sample.describe(),
        "estimate": estimate,
        "floors": {name: verdict.rounded(one) for name, one in floors.items()},
        "left_out": left_out,
    }
    if config.dry_run:
        return {**result, "dry_run": True, "seconds": clock.seconds}
    sample, embedders, dropped = fit_to_budget(sample, embedders, clock, probe_seconds)
    left_out |= dropped
    finish = run_race(sample, embedders, config.seed, clock.has)
    result |= _advice(finish, floors, config, clock)
    result["seconds"] = clock.seconds
    _write(result, config.out)
    return result


def _check_out(out: str | None) -> None:
    if out is not None and not out.lower().endswith(".json"):
        raise ConfigError(f"out is {out}, expected the name of a .json file, such as advice.json")


def _write(result: dict[str, Any], out: str | None) -> None:
    if out is not None:
        uri = to_uri(out)
        open_store(uri).write(uri, json.dumps(result, indent=1).encode())


def _embedders(sample: Sample, candidates: Sequence[Candidate]) -> list[Embedder]:
    """One for each candidate; networks that take the same pixels share them."""
    pixels: dict[str, np.ndarray] = {}

    def geometry(preprocessing: Preprocessing) -> str:
        return preprocessing.model_dump_json(exclude={"mean", "std", "scale", "channels"})

    embedders = []
    for one in candidates:
        preprocessing = one.backbone.recipe.preprocessing
        key = geometry(preprocessing)
        if key not in pixels:
            pixels[key] = sample.read(preprocessing)
        embedders.append(Embedder(one, pixels[key]))
    return embedders


def _advice(finish: Finish, floors: dict[str, Any], config: AdviseConfig, clock: Clock) -> dict[str, Any]:
    """What the race and the trials after it say."""
    sample, best = finish.sample, finish.racers[0]
    heads = [_head(one, config) for one in finish.racers]
    probes = sum(len(one.probes) for one in (*finish.racers, *finish.out)) + 1
    majority = floors["majority"].value
    is_hopeless = verdict.judge(heads[:1], majority, probes)["verdict"] == "nothing"
    likeness = likeness_of(finish, floors["pixels_linear"].value)
    trials = _Trials([], []) if is_hopeless else _run_trials(finish, heads[0], likeness["value"], config, clock)
    curve = learning_curve(best.candidate.features[best.best_tap], sample.examples, sample.folds_N, config.seed)
    strategies = [*heads, *trials.strategies]
    judged = verdict.judge(strategies, majority, probes)
    pixels = floors["pixels_linear"].value
    if judged["verdict"] != "nothing" and pixels >= heads[0].expected.value:
        judged["reason"] += f"; a linear model of raw pixels is as good as any head ({pixels:.3f})"
    say(judged["reason"])
    rows = [row_of(one) for one in (*finish.racers, *finish.out)]
    return {
        "data": data_of(sample, best, config),
        "candidates": rows,
        "learning_curve": [{"labels_per_class": labels, "accuracy": verdict.rounded(one)} for labels, one in curve],
        "likeness": likeness,
        "scenario": verdict.scenario_of(float(np.median(list(sample.class_sizes.values()))), likeness["value"]),
        "strategies": [one.describe() for one in strategies],
        "not_tried": trials.not_tried,
        **judged,
    }


def _head(racer: Racer, config: AdviseConfig) -> Strategy:
    candidate, sample = racer.candidate, racer.sample
    return Strategy(
        kind="head",
        candidate=candidate,
        layer=racer.best_tap,
        rows=np.arange(len(sample)),
        right=racer.right,
        expected=racer.probes[racer.best_tap].accuracy,
        cost_seconds=candidate.seconds_per_image * sample.labelled,
        commands=head_commands(config, candidate, racer.best_tap),
    )


@dataclass(frozen=True)
class _Trials:
    """What came of trials, and why others were left out."""

    strategies: list[Strategy]
    not_tried: list[dict[str, str]]


def _run_trials(finish: Finish, head: Strategy, likeness: float | None, config: AdviseConfig, clock: Clock) -> _Trials:
    """Train the best candidate's network in the ways that may win, as far as the minutes go."""
    sample, found = finish.sample, _Trials([], [])
    for attempt in attempts_of(finish.racers[0], likeness):
        why = _why_not(attempt, head, sample, config, clock)
        if why:
            found.not_tried.append({"strategy": attempt.kind, "candidate": attempt.candidate.name, "reason": why})
            say(f"not tried: {attempt.kind} of {attempt.candidate.name}: {why}")
            continue
        trial = try_out(attempt, sample, config)
        say(f"{attempt.kind} of {attempt.candidate.name}: {trial.right.mean():.3f} right in {readable_seconds(trial.seconds)}")
        found.strategies.append(
            Strategy(
                kind=attempt.kind,
                candidate=attempt.candidate,
                layer=attempt.cut or attempt.candidate.tap,
                rows=trial.rows,
                right=trial.right,
                expected=verdict.expected_of_trial(head, trial.rows, trial.right),
                cost_seconds=trial.seconds * sample.labelled / trial.trained_on,
                commands=network_commands(config, attempt),
            )
        )
    return found


def _why_not(attempt: Attempt, head: Strategy, sample: Sample, config: AdviseConfig, clock: Clock) -> str:
    """Why an attempt is not made; nothing where it is."""
    if not config.trials:
        return "trials is false"
    if 1 - head.expected.value < verdict.LEAST_GAIN:
        return f"the head leaves less than {verdict.LEAST_GAIN:.0%} to win"
    began = time.monotonic()
    seconds = seconds_per_image(attempt, sample, config) * len(sample) * config.epochs
    if not clock.has(seconds):
        return (
            f"it would take {readable_seconds(seconds)}, and {readable_seconds(clock.left)} are left; --minutes "
            f"{(clock.seconds + seconds + time.monotonic() - began) / 60:.0f} would be enough"
        )
    return ""


def attempts_of(racer: Racer, likeness: float | None) -> list[Attempt]:
    """What is worth trying after the race, the most promising first.

    Of a pretrained network: fine-tuning all of it; freezing up to the layer whose features tell the classes best, as those
    after it serve the pretraining more than this task (how features turn from general to specific: Yosinski et al. 2014, arXiv
    1411.1792), or up to the one before where that is the penultimate; and from scratch, where pretrained features are hardly
    better than raw pixels. Of a network with random weights: training it from scratch.

    Args:
        racer: the best candidate.
        likeness: see `tlray.advice.measuring.evidence.likeness`.
    """
    candidate = racer.candidate
    if candidate.anatomy is None:
        return []
    if not candidate.is_pretrained:
        return [Attempt("scratch", candidate)]
    attempts = [Attempt("fine-tune", candidate)]
    cut = freezing_point(racer)
    if cut is not None:
        attempts.append(Attempt("freeze", candidate, cut))
    if likeness is not None and likeness < verdict.LIKE / 2:
        attempts.append(Attempt("scratch", candidate))
    return attempts


def freezing_point(racer: Racer) -> str | None:
    """The layer up to which a network would be frozen; None where only the penultimate was tried."""
    cuts = racer.candidate.anatomy.cuts if racer.candidate.anatomy else ()
    taps = [tap for tap in racer.candidate.taps if tap in cuts]
    earlier = [tap for tap in taps if tap != racer.candidate.tap]
    if not earlier:
        return None
    best = max(taps, key=lambda tap: racer.probes[tap].right_N.mean())
    return best if best in earlier else earlier[-1]
