"""`tlray advise`: from its config to its result.

Shape legend: N images of the sample.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlray.advice import KIND
from tlray.advice.inputs.candidates import Candidate, Embedder, find_candidates
from tlray.advice.inputs.sample import Sample, take_sample
from tlray.advice.measuring.budget import Clock, estimate_of, fit_to_budget
from tlray.advice.measuring.difference import Difference
from tlray.advice.measuring.evidence import data_of, floors_of, likeness_of, row_of
from tlray.advice.measuring.probes import learning_curve
from tlray.advice.measuring.race import Finish, Racer, play_off, run_race
from tlray.advice.measuring.trials import Attempt, Try
from tlray.advice.verdict.judge import LEAST_GAIN, judge
from tlray.advice.verdict.outlook import Outlook
from tlray.advice.verdict.scenario import LIKE, scenario_of
from tlray.advice.verdict.strategies import Strategy, of_head, of_trial
from tlray.config import AdviseConfig
from tlray.errors import ConfigError
from tlray.lake.storage.open import open_store
from tlray.lake.storage.uri import to_uri
from tlray.progress import readable_seconds, say
from tlray.recipe import Preprocessing
from tlray.version import __version__


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
    estimate = estimate_of(embedders, sample, probe_seconds)
    say(f"estimated {readable_seconds(estimate['seconds'])} for all candidates on all images of the sample, trials apart")
    result: dict[str, Any] = {
        "kind": KIND,
        "made_with": __version__,
        "source": to_uri(config.source.uri),
        "labels": config.labels,
        "sample": sample.describe(),
        "estimate": estimate,
        "floors": {name: one.rounded() for name, one in floors.items()},
        "left_out": left_out,
    }
    if config.dry_run:
        return {**result, "dry_run": True, "seconds": clock.seconds}
    sample, embedders, dropped = fit_to_budget(sample, embedders, clock, probe_seconds)
    left_out |= dropped
    finish = play_off(run_race(sample, embedders, config.seed, clock.has), config.seed, probe_seconds, clock.has)
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
    """What the race and the trials after it say; trials come last, as they take what is left of the minutes."""
    sample, best, pixels = finish.sample, finish.racers[0], floors["pixels_linear"].value
    whole = best.probes[best.best_tap]
    likeness = likeness_of(finish, pixels)
    measured = {
        "data": data_of(sample, best, config),
        "candidates": [row_of(one) for one in (*finish.racers, *finish.out)],
        "likeness": likeness,
        "scenario": scenario_of(float(np.median(list(sample.class_sizes.values()))), likeness["value"]),
    }
    curve = learning_curve(best.candidate.features[best.best_tap], sample.examples, sample.folds_N, whole, config.seed)
    points = [{"labels_per_class": labels, "accuracy": probe.accuracy.rounded()} for labels, probe in curve]
    probes = [probe for one in finish.racers for probe in one.probes.values()]
    right, loss = [probe.right_N for probe in probes], [probe.loss_N for probe in probes if probe.loss_N is not None]
    outlook = Outlook.of(right, whole.right_N, curve[-2][1].right_N if len(curve) > 1 else None, config.seed, loss)
    heads = [of_head(one, outlook, config) for one in finish.racers]
    majority, compared = floors["majority"].value, sum(len(one.probes) for one in (*finish.racers, *finish.out)) + 1
    is_hopeless = judge(heads[:1], majority, compared)["verdict"] == "nothing"
    trials = _Trials([], []) if is_hopeless else _run_trials(finish, heads[0], outlook, likeness["value"], config, clock)
    strategies = [*heads, *trials.strategies]
    judged = judge(strategies, majority, compared)
    if judged["verdict"] != "nothing" and pixels >= heads[0].measured:
        judged["reason"] += f"; a linear model of raw pixels is as good as any head ({pixels:.3f})"
    say(judged["reason"])
    return {
        **measured,
        "learning_curve": points,
        "outlook": outlook.describe(),
        "strategies": [one.describe() for one in strategies],
        "not_tried": trials.not_tried,
        **judged,
    }


@dataclass(frozen=True)
class _Trials:
    """What came of trials, and why others were not made, or not to their end."""

    strategies: list[Strategy]
    not_tried: list[dict[str, str]]

    def leave_out(self, attempt: Attempt, why: str) -> None:
        """Note why there is nothing of an attempt."""
        self.not_tried.append({"strategy": attempt.kind, "candidate": attempt.candidate.name, "reason": why})
        say(f"no result of {attempt.kind} of {attempt.candidate.name}: {why}")


def _run_trials(
    finish: Finish, head: Strategy, outlook: Outlook, likeness: float | None, config: AdviseConfig, clock: Clock
) -> _Trials:
    """Train the network of the best candidate that can be trained in the ways that may win, as far as the minutes go."""
    sample, found, lost = finish.sample, _Trials([], []), ""
    trainable = next((one for one in finish.racers if one.candidate.anatomy is not None), None)
    for attempt in attempts_of(trainable, likeness) if trainable else ():
        if not config.trials or 1 - head.measured < LEAST_GAIN:
            why = f"the head leaves less than {LEAST_GAIN:.0%} to win" if config.trials else "trials is false"
            found.leave_out(attempt, why)
            continue
        if lost:
            more = "and this has more to learn from the same labels"
            found.leave_out(attempt, f"{lost} is not better than the best head by more than the error, {more}")
            continue
        begun = Try(attempt, sample, config)
        seconds = begun.seconds()
        if not clock.has(seconds):
            enough = (clock.seconds + seconds) / 60
            found.leave_out(
                attempt,
                f"it would take {readable_seconds(seconds)}, and {readable_seconds(max(clock.left, 0))} are left; --minutes "
                f"{enough:.0f} would be enough",
            )
            continue
        trial = begun.run(head.right, clock.has)
        gain = Difference.of(trial.right, head.right[trial.rows])
        if trial.is_behind or (not trial.given_up and gain.mean <= gain.error):
            lost = attempt.kind
        if trial.given_up:
            found.leave_out(attempt, trial.given_up)
            continue
        say(f"{attempt.kind} of {attempt.candidate.name}: {trial.right.mean():.3f} right in {readable_seconds(trial.seconds)}")
        found.strategies.append(of_trial(attempt, trial, head, sample, outlook, config))
    return found


def attempts_of(racer: Racer, likeness: float | None) -> list[Attempt]:
    """What is worth trying after the race, in the order of how much is learned: each only where the one before it won.

    It has won where the verdict would choose it: where it is better than the head by more than a standard error.

    Of a pretrained network: freezing up to the layer whose features tell the classes best, as those after it serve the
    pretraining more than this task (how features turn from general to specific: Yosinski et al. 2014, arXiv 1411.1792), or up
    to the one before where that is the penultimate; fine-tuning all of it; and from scratch, where pretrained features are
    hardly better than raw pixels. Of a network with random weights: training it from scratch.

    Args:
        racer: the best candidate.
        likeness: see `tlray.advice.measuring.evidence.likeness`.
    """
    candidate = racer.candidate
    if candidate.anatomy is None:
        return []
    if not candidate.is_pretrained:
        return [Attempt("scratch", candidate)]
    cut = freezing_point(racer)
    attempts = [Attempt("freeze", candidate, cut)] if cut is not None else []
    attempts.append(Attempt("fine-tune", candidate))
    if likeness is not None and likeness < LIKE / 2:
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
