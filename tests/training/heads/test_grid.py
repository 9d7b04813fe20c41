"""The solvers of heads, against scikit-learn, torch's own optimizer, and themselves alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.training.tables import CLASSES, blobs, config_for
from tlray.config import GridConfig, HeadConfig
from tlray.errors import ConfigError, ExamplesError
from tlray.training.examples.examples import Examples, Split
from tlray.training.examples.metrics import evaluate
from tlray.training.examples.table_vectors import LoadedVectors
from tlray.training.heads.adamw import train_adamw
from tlray.training.heads.conjugate_gradients import conjugate_gradients
from tlray.training.heads.grid import DEFAULT_RATES, best_of, solver_of, trained_again
from tlray.training.heads.objective import Objective
from tlray.training.heads.trials import BEHIND, Data, Fit, Schedule, Trial, scores_of, to_head
from tlray.training.train import train

ROWS = 400


def make_data(features: np.ndarray, targets: np.ndarray, task: str = "single", weights: np.ndarray | None = None) -> Data:
    count = len(features)
    outputs = int(targets.max()) + 1 if task == "single" else targets.shape[1]
    splits = np.array([Split.TRAIN] * (count * 3 // 4) + [Split.VALIDATION] * (count - count * 3 // 4), np.uint8)
    names = tuple(str(at) for at in range(outputs))
    uris = pa.array([f"s3://b/{at}" for at in range(count)])
    examples = Examples(uris, targets, splits, task, names, np.arange(count))
    row_weights = torch.ones(count) if weights is None else torch.from_numpy(weights.astype(np.float32))
    return Data(LoadedVectors(features), examples, row_weights)


@pytest.fixture(scope="module")
def data() -> Data:
    features, classes = blobs(ROWS)
    return make_data(features, classes)


def quiet(_epoch: int, _metrics: dict[str, float]) -> None:
    pass


def decays(*values: float) -> list[Trial]:
    return [Trial("embedding", "cg", value) for value in values]


def rates(*values: float) -> list[Trial]:
    return [Trial("embedding", "adamw", 0.01, value) for value in values]


def adamw(
    data: Data,
    trials: Sequence[Trial],
    *,
    epochs: int = 4,
    hidden: Sequence[int] = (),
    batch_size: int = 64,
    seed: int = 3,
    **changes: object,
) -> list[Fit]:
    settings = {"hidden": hidden, "dropout": 0.0, "log": quiet} | changes
    return train_adamw(data, trials, Schedule(epochs, 100, batch_size, seed), **settings)


def train_matrix(data: Data) -> tuple[np.ndarray, np.ndarray]:
    positions, features = data.matrix(Split.TRAIN)
    return features.numpy().astype(np.float64), data.examples.targets[positions]


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
@pytest.mark.parametrize("balanced", [False, True])
def test_conjugate_gradients_find_the_optimum_of_scikit_learn(decay: float, balanced: bool) -> None:
    features, classes = blobs(ROWS)
    weights = np.where(classes == 0, 3.0, 1.0) if balanced else None
    data = make_data(features, classes, weights=weights)
    (fit,) = conjugate_gradients(data, decays(decay), Schedule(60, 60), 8, quiet)
    (all_rows,) = conjugate_gradients(data, decays(decay), Schedule(60, 60, refit=True), 8, quiet)
    x, y = train_matrix(data)
    used = np.ones(len(x)) if weights is None else weights[: len(x)]
    penalty = 1 / (decay * used.sum())
    oracle = LogisticRegression(C=penalty, max_iter=5000, tol=1e-10).fit(x, y, sample_weight=used)
    weight, bias = all_rows.layers[0]
    everything = np.concatenate([data.matrix(split)[1].numpy() for split in (Split.TRAIN, Split.VALIDATION)])
    both = np.ones(ROWS) if weights is None else weights
    refitted = LogisticRegression(C=1 / (decay * both.sum()), max_iter=5000, tol=1e-10).fit(everything, classes, both)
    assert np.abs(weight.numpy() - refitted.coef_).max() < 2e-3 * np.abs(refitted.coef_).max() + 1e-4
    assert np.abs((bias - bias.mean()).numpy() - (refitted.intercept_ - refitted.intercept_.mean())).max() < 5e-3
    # With early stopping far away, the validation loss is that of the optimum or better.
    positions, held = data.matrix(Split.VALIDATION)
    likely = oracle.predict_log_proba(held.numpy())[np.arange(len(positions)), classes[positions]]
    assert fit.validation_loss <= -likely.mean() * 1.011 + 1e-3


def test_more_dimensions_than_rows() -> None:
    features, classes = blobs(80, dimensions=200)
    data = make_data(features, classes)
    (fit,) = conjugate_gradients(data, decays(1e-2), Schedule(80, 80, refit=True), 8, quiet)
    x = data.matrix(Split.TRAIN, Split.VALIDATION)[1].numpy()
    oracle = LogisticRegression(C=1 / (1e-2 * 80), max_iter=5000, tol=1e-10).fit(x, classes)
    assert np.abs(fit.layers[0][0].numpy() - oracle.coef_).max() < 5e-3 * np.abs(oracle.coef_).max()


def test_each_label_of_several_is_a_logistic_regression() -> None:
    features, classes = blobs(ROWS)
    targets = np.stack([classes < 2, classes % 2 == 0], axis=1).astype(np.float32)
    data = make_data(features, targets, "multi")
    (fit,) = conjugate_gradients(data, decays(1e-2), Schedule(60, 60, refit=True), 8, quiet)
    x = data.matrix(Split.TRAIN, Split.VALIDATION)[1].numpy()
    for label in range(2):  # the loss is the mean over labels, so each has half of it
        oracle = LogisticRegression(C=1 / (2 * 1e-2 * ROWS), max_iter=5000, tol=1e-10).fit(x, targets[:, label])
        assert np.abs(fit.layers[0][0][label].numpy() - oracle.coef_[0]).max() < 2e-3 * np.abs(oracle.coef_).max()


def test_a_head_depends_on_the_others_of_its_grid_only_once_it_is_behind(data: Data) -> None:
    trials = decays(*np.geomspace(1e-4, 1, 7).tolist())
    together = conjugate_gradients(data, trials, Schedule(30, 3), 8, quiet)
    in_threes = conjugate_gradients(data, trials, Schedule(30, 3), 3, quiet)
    apart = [conjugate_gradients(data, [trial], Schedule(30, 3), 8, quiet)[0] for trial in trials]
    least = min(fit.validation_loss for fit in apart)
    for alone, *others in zip(apart, together, in_threes, strict=True):
        for fit in others:
            epochs = len(fit.validation_losses)
            assert fit.validation_losses == pytest.approx(alone.validation_losses[:epochs], rel=1e-4)
            if fit.best_epoch == alone.best_epoch:
                assert torch.allclose(fit.layers[0][0], alone.layers[0][0], atol=1e-4)
            assert epochs == len(alone.validation_losses) or fit.validation_loss > BEHIND * least
    lengths = [len(fit.validation_losses) for fit in together]
    assert lengths[-1] < len(apart[-1].validation_losses) and lengths[-1] < max(lengths)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_a_stack_of_heads_is_torch_and_its_adamw(hidden: tuple[int, ...], task: str) -> None:
    features, classes = blobs(ROWS)
    targets = classes if task == "single" else np.eye(CLASSES, dtype=np.float32)[classes]
    data = make_data(features, targets, task)
    trials = rates(1e-3, 3e-2)
    fits = adamw(data, trials, hidden=hidden)
    for trial, fit in zip(trials, fits, strict=True):
        expected = plain_torch(data, trial, hidden, epochs=fit.best_epoch, of=4)
        for (weight, bias), layer in zip(fit.layers, expected, strict=True):
            assert torch.allclose(weight, layer.weight, atol=2e-5) and torch.allclose(bias, layer.bias, atol=2e-5)


def plain_torch(data: Data, trial: Trial, hidden: Sequence[int], *, epochs: int, of: int) -> list[nn.Linear]:
    """One head by torch.optim.AdamW, in the same order of batches."""
    torch.manual_seed(3)
    widths = [data.vectors.dimensions, *hidden, len(data.examples.classes)]
    layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    if not hidden:
        nn.init.zeros_(layers[0].weight)
        nn.init.zeros_(layers[0].bias)
    network = nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=trial.learning_rate, weight_decay=trial.weight_decay)
    generator = np.random.default_rng(3)
    batches = -(-len(data.examples.positions(Split.TRAIN)) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, of * batches)
    losses = {"single": nn.CrossEntropyLoss(), "multi": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}
    for _ in range(epochs):
        for rows, features in data.vectors.batches(data.wanted(Split.TRAIN), 64, generator):
            optimizer.zero_grad()
            losses[data.examples.task](network(data.standardised(features)), data.targets[rows]).backward()
            optimizer.step()
            schedule.step()
    return layers


def test_what_is_kept_is_what_was_measured(data: Data) -> None:
    for fit in [
        *adamw(data, rates(1e-3, 0.3), hidden=(16,), epochs=6),
        *conjugate_gradients(data, decays(1e-5), Schedule(9, 3), 4, quiet),
    ]:
        head = to_head(fit, data, dropout=0.5)
        at = data.examples.positions(Split.VALIDATION)
        scores = torch.from_numpy(scores_of(head, data)[at])
        assert fit.validation_loss == pytest.approx(float(nn.functional.cross_entropy(scores, data.targets[at])), rel=1e-4)
        assert fit.validation_loss <= min(fit.validation_losses) * 1.011


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_a_regression_does_not_depend_on_the_unit_of_its_targets(hidden: tuple[int, ...]) -> None:
    features, _ = blobs(ROWS)
    rng = np.random.default_rng(0)
    signal = (features / features.std(axis=0)) @ rng.standard_normal((features.shape[1], 2))
    targets = np.float32(signal + 0.5 * rng.standard_normal(signal.shape)) * np.float32([3, 1e-3]) + np.float32([40, 0])
    data = make_data(features, np.hstack([targets, np.full((ROWS, 1), 7, np.float32)]), "regression")
    x, y = train_matrix(data)
    at, held = data.matrix(Split.VALIDATION)
    closed = LinearRegression().fit(x, y).predict(held.numpy())
    expected = evaluate(closed, data.examples.targets[at], "regression", data.examples.classes).per_class
    (fit,) = adamw(data, rates(2e-2), epochs=40, hidden=hidden)
    scores = scores_of(to_head(fit, data, dropout=0.0), data)[at]
    found = evaluate(scores, data.examples.targets[at], "regression", data.examples.classes).per_class
    assert min(row.r2 for row in expected[:2]) > 0.9
    assert all(row.r2 > oracle.r2 - 0.1 for row, oracle in zip(found[:2], expected[:2], strict=True))
    assert found[2].mean_absolute_error < 0.3  # the same in all rows
    # The loss that the best is chosen by is in variances of the training rows.
    error = ((scores - data.examples.targets[at]) / np.append(y[:, :2].std(axis=0), 1)) ** 2
    assert fit.validation_loss == pytest.approx(error.mean(), rel=1e-3)


def test_the_default_rates_are_those_that_the_config_names() -> None:
    named = GridConfig.model_fields["learning_rates"].description
    assert named == "of adamw; default {:g}, {:g} and {:g}".format(*DEFAULT_RATES)


def test_the_same_seed_gives_the_same_heads(data: Data) -> None:
    trials = rates(1e-2)
    first, again, other = (adamw(data, trials, hidden=(8,), dropout=0.3, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first.layers[0][0], again.layers[0][0])
    assert not torch.equal(first.layers[0][0], other.layers[0][0])


def test_heads_stop_when_they_get_no_better() -> None:
    features, classes = blobs(ROWS, noise=4.0)
    fits = conjugate_gradients(make_data(features, classes), decays(1e-6, 1.0), Schedule(100, 2), 8, quiet)
    assert all(len(fit.validation_losses) < 60 and len(fit.validation_losses) - fit.best_epoch <= 2 for fit in fits)


@pytest.mark.parametrize("task", ["single", "multi", "regression"])
def test_derivatives_are_those_of_autograd(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 20, dtype=torch.float64, generator=generator)
    targets = (
        torch.randint(4, (20,), generator=generator)
        if task == "single"
        else torch.rand(20, 4, dtype=torch.float64, generator=generator).round()
    )
    objective = Objective(targets, torch.rand(20, dtype=torch.float64, generator=generator), task)
    along = torch.randn(3, 4, 20, dtype=torch.float64, generator=generator)
    first, second = objective.expand(scores)
    leaf = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective.losses(leaf).sum(), leaf, create_graph=True)
    assert torch.allclose(first, expected)
    (hessian_along,) = torch.autograd.grad((expected * along).sum(), leaf)
    assert torch.allclose(objective.curvature(second, along), (hessian_along * along).sum(dim=(1, 2)))
    diagonal = torch.zeros(3, 4, dtype=torch.float64)
    for output in range(4):
        one = torch.zeros_like(scores)
        one[:, output] = 1
        diagonal[:, output] = objective.curvature(second, one)
    assert torch.allclose(objective.diagonal(second), diagonal)


def test_standardising_is_that_of_all_training_rows() -> None:
    features, classes = blobs(20_000)
    features[:, 3] = 7
    mean, scale = make_data(features, classes).standard
    train = features[:15_000].astype(np.float64)
    assert np.allclose(mean.numpy(), train.mean(axis=0), rtol=1e-6)
    variance = train.var(axis=0)
    assert np.allclose(1 / scale.numpy() ** 2, variance + 0.1 * variance.mean(), rtol=1e-5)
    assert make_data(np.ones((100, 3), np.float32), classes[:100]).standard[1].tolist() == [1, 1, 1]


def test_columns_in_unlike_units_are_standardised_each() -> None:
    features, classes = blobs(ROWS)
    features[:, 2], features[:, 5] = 0.1, features[:, 5] * 1e4
    _, scale = make_data(features, classes).standard
    expected = StandardScaler().fit(features[: ROWS * 3 // 4].astype(np.float64)).scale_
    assert np.allclose(1 / scale.numpy(), np.where(np.arange(len(expected)) == 2, 1, expected), rtol=1e-5)


def test_vectors_that_are_not_finite_are_counted_and_named() -> None:
    features, classes = blobs(100)
    features[[3, 99], 0] = [np.nan, np.inf]
    with pytest.raises(ExamplesError, match=r"vectors of 2 images are not finite: s3://b/3, s3://b/99"):
        _ = make_data(features, classes).standard


@pytest.mark.parametrize(
    ("head", "grid", "message"),
    [
        ({"hidden": [8]}, {}, "give --head.kind mlp"),
        ({"kind": "mlp", "solver": "cg"}, {}, "head.solver cg is for linear heads"),
        ({"kind": "ridge"}, {"learning_rates": [0.1]}, "learning_rates are of head.solver adamw"),
        ({}, {"learning_rates": [0.0]}, "must be over 0"),
        ({}, {"learning_rates": [float("inf")]}, "must be over 0"),
        ({}, {"weight_decays": [-1.0]}, "0 or more"),
        ({}, {"weight_decays": [float("nan")]}, "0 or more"),
    ],
)
def test_settings_that_exclude_each_other(head: dict, grid: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_for(Path("/x"), head=head, grid=grid))


def test_who_trains(data: Data) -> None:
    any_grid = GridConfig()
    assert solver_of(data, HeadConfig(), any_grid, 10**9) == "cg"
    assert solver_of(data, HeadConfig(), GridConfig(learning_rates=(0.1,)), 10**9) == "adamw"
    assert solver_of(data, HeadConfig(), any_grid, 1000) == "adamw"
    assert solver_of(data, HeadConfig(kind="mlp"), any_grid, 10**9) == "adamw"
    assert solver_of(data, HeadConfig(kind="ridge"), any_grid, 1000) == "ridge"
    with pytest.raises(ConfigError, match="needs all vectors in memory"):
        solver_of(data, HeadConfig(solver="cg"), any_grid, 1000)


def test_of_heads_that_cannot_be_told_apart_the_simplest_is_the_best() -> None:
    rng = np.random.default_rng(0)
    losses, noise = rng.exponential(size=200), rng.standard_normal(200)
    noise -= noise.mean()
    # All lose 0.005 more than the first; the standard error of that is 0.007 (noise 0.1) or 0.0007.
    rows = [losses, losses + 0.005 + 0.1 * noise, losses + 0.005 + 0.01 * noise]
    fits = [Fit(trial, (), 1, (row.mean(),), row_losses=row) for trial, row in zip(decays(1, 2, 3), rows, strict=True)]
    assert best_of(fits) is fits[1]
    assert best_of([fits[0], replace(fits[1], trial=rates(1.0)[0])]) is fits[0]  # another solver has another weight decay


def test_a_loss_that_is_never_finite_is_an_error(data: Data) -> None:
    with pytest.raises(ConfigError, match="of all 1 heads is not finite"):
        best_of([Fit(rates(1.0)[0], (), 1, (float("nan"),))])


def test_training_again_takes_as_many_epochs_and_all_rows(data: Data) -> None:
    schedule = Schedule(4, 100, batch_size=64, seed=3)
    for fit in (adamw(data, rates(1e-2), epochs=3)[0], conjugate_gradients(data, decays(1e-2), Schedule(20, 3), 4, quiet)[0]):
        again = trained_again(fit, data, schedule, HeadConfig(), 10**9)
        assert again.best_epoch == fit.best_epoch and again.validation_losses == fit.validation_losses
        assert not torch.equal(again.layers[0][0], fit.layers[0][0])
