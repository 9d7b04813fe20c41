"""Where a task lies on the textbooks' map of four scenarios."""

from typing import Any

LITTLE = 100
"""Labels a class under which data are called little: a rule of thumb, as the textbooks' map gives no number. Kornblith, Shlens
and Le 2019 (Do Better ImageNet Models Transfer Better?, arXiv 1805.08974) see fine-tuning gain on fixed features as labels a
class grow from a few to hundreds."""

LIKE = 0.5
"""Share of the errors of a linear probe on raw pixels that one on pretrained features avoids, from which on a task is called
like the pretraining's; likewise."""

SCENARIOS = {
    ("little", "like"): "train a head on the last features",
    ("little", "unlike"): "train a head on earlier features, or freeze the first layers",
    ("much", "like"): "fine-tune, with small rates",
    ("much", "unlike"): "fine-tune all of it; training from scratch may do as well",
}
"""The map of the CS231n notes on transfer learning (cs231n.github.io/transfer-learning), which has these four corners."""


def scenario_of(labels_per_class: float, likeness: float | None) -> dict[str, Any]:
    """Place a task on the map of four scenarios.

    Args:
        labels_per_class: of the class of middling size.
        likeness: see `LIKE`; None where no pretrained network was tried.
    """
    amount = "little" if labels_per_class < LITTLE else "much"
    kind = None if likeness is None else "like" if likeness >= LIKE else "unlike"
    return {
        "labels_per_class": labels_per_class,
        "likeness": None if likeness is None else round(likeness, 4),
        "corner": None if kind is None else f"{amount}, {kind}",
        "map_says": None if kind is None else f"{amount} data, {kind} the pretraining's: {SCENARIOS[amount, kind]}",
    }
