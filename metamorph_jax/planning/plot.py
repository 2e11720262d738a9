"""A plan as one picture: what fills a chip's memory, and which time bounds a step."""

from pathlib import Path

from metamorph_jax.metrics.chips import GIB
from metamorph_jax.planning.plan import StagePlan


def save_plot(path: Path, plans: list[StagePlan]) -> None:
    """Writes the picture of the stages' plans."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (memory, times) = pyplot.subplots(1, 2, figsize=(11, 1.8 + 1.1 * len(plans)))
    names = [plan.stage.name for plan in plans]
    for index, plan in enumerate(plans):
        left = 0.0
        parts = [name for name in plan.bytes_per_chip if name != "needed"]
        for number, part in enumerate(parts):
            width = plan.bytes_per_chip[part].value / GIB
            label = part if index == 0 else None
            memory.barh(index, width, left=left, color=f"C{number}", label=label)
            left += width
    limit = plans[0].pod.chip.hbm_bytes / GIB
    memory.axvline(limit, color="black", linestyle="--", label="memory of a chip")
    memory.set(yticks=range(len(plans)), yticklabels=names, xlabel="GiB per chip")
    memory.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=2)
    for number, label in enumerate(("matrix unit", "memory", "interconnect")):
        places = [index + 0.25 * (number - 1) for index in range(len(plans))]
        seconds = [plan.roofline.times[label] for plan in plans]
        times.barh(places, seconds, height=0.22, color=f"C{number}", label=label)
    times.set(yticks=range(len(plans)), yticklabels=names, xlabel="seconds per step, at least")
    times.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=3)
    figure.suptitle(f"{plans[0].pod.name}, mesh {plans[0].mesh}")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
