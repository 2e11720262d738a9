"""Training and sampling speed of Stable Diffusion 1.5's shapes, with random weights, on one GPU.

    python benchmarks/gpu/visualizer.py [--batch_size=48] [--steps=20] [--no_compile]
    python benchmarks/gpu/visualizer.py --size=tiny --batch_size=2 --steps=2 --no_compile

The second line only shows that the script runs; it needs no GPU. Printed are pictures per second
with kept features and latents and without, in the same run and with equal losses; the share of the
GPU's bfloat16 peak that the update's counted FLOPs are; and seconds to paint one picture (guidance
on, decoding included), eager and compiled. Input is made on the host beforehand: decoding pictures
is not part of this.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from random_diffusion import SD15, TINY, Size, create_encoder, create_parts, run_config
from timing import print_goal, print_versions

from metamorph_jax.visualizer.diffusion import draw_noise
from metamorph_jax.visualizer.feed import PictureData, Rows
from metamorph_jax.visualizer.model import Visualizer
from metamorph_jax.visualizer.pictures import Names, Pictures
from metamorph_jax.visualizer.schema import VisualizerRunConfig
from metamorph_jax.visualizer.trainer import Trainer

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312}  # dense bfloat16
WARM_UP = 3
GOAL_PICTURES, GOAL_SHARE, GOAL_RATIO = 146.0, 0.30, 1.5
GOAL_SECONDS = {"DDIM, 50 steps": 0.7, "DPM++, 20 steps": 0.3}
# bfloat16 arithmetic on equal inputs; the encoders' own results are the inputs of the other side.
TOLERANCE = 1e-3


def wait() -> None:
    """Returns when the GPU, if there is one, has done everything."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], object], repeats: int) -> float:
    """Returns the median time of one call, after a few that are not counted."""
    times = []
    for number in range(WARM_UP + repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        if number >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_rows(size: Size, config: VisualizerRunConfig) -> Rows:
    """Returns random pictures, as the feed would give them."""
    count, generator = config.training.batch_size, torch.Generator().manual_seed(0)

    def pictures(side: int) -> torch.Tensor:
        shape = (count, side, side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    seen, squares = pictures(size.tower["image_size"]), pictures(size.picture_size)
    noise = draw_noise(config, 0, range(count))
    return Rows(None, seen, None, squares, noise, torch.zeros(count, dtype=torch.bool), [])


def measure_training(size: Size, flags: argparse.Namespace, folder: Path) -> Visualizer:
    """Prints the speed of both ways to train; returns the model."""
    config = run_config(
        size, flags.batch_size, mixed_precision="bf16", compile=not flags.no_compile
    )
    parts = create_parts(size)
    encoder = create_encoder(folder, size, config)
    data = PictureData(Pictures(folder, Names.of(["none"]), "none"))
    trainer = Trainer(config, data, parts, encoder)
    live = make_rows(size, config)
    tokens, latents = (value.cpu() for value in trainer.encode(live))
    kept = live._replace(tokens=tokens, latents=latents, seen=None, squares=None)
    losses = [trainer.evaluate([rows]) for rows in (live, kept)]
    print(f"parity  loss live {losses[0]:.6f}, kept {losses[1]:.6f}")
    assert abs(losses[0] - losses[1]) <= TOLERANCE
    with FlopCounterMode(display=False) as counter:
        trainer.evaluate([kept._replace(**first_rows(kept))])
    flops = 3 * counter.get_total_flops()  # the backward pass has two products for each one
    times = {
        name: seconds_of(lambda rows=rows: trainer.update([rows]), flags.steps)
        for name, rows in (("live", live), ("kept", kept))
    }
    for name, value in times.items():
        print(f"{name:58s} {flags.batch_size / value:9.1f} pictures/s")
    rate = flags.batch_size / times["kept"]
    print(f"one picture's update is {flops / 1e12:.3f} TFLOP (counted)")
    if (peak := find_peak()) is not None:
        print_goal("kept, pictures/s", rate, GOAL_PICTURES, "{:.0f}")
        print_goal("kept against live", times["live"] / times["kept"], GOAL_RATIO)
        print_goal("share of the bfloat16 peak", rate * flops / peak, GOAL_SHARE, "{:.2f}")
    return trainer.visualizer


def first_rows(rows: Rows) -> dict[str, object]:
    """Returns the first of some rows, by name."""
    noise = type(rows.noise)(*(value[:1] for value in rows.noise))
    return {
        "tokens": rows.tokens[:1],
        "latents": rows.latents[:1],
        "noise": noise,
        "is_bad": rows.is_bad[:1],
    }


def find_peak() -> float | None:
    """Returns the GPU's FLOP/s in dense bfloat16, None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def measure_sampling(visualizer: Visualizer, size: Size, flags: argparse.Namespace) -> None:
    """Prints the seconds of one picture through diffusers' own pipeline."""
    device = next(visualizer.parameters()).device
    settings = visualizer.scheduler_config
    pipeline = StableDiffusionPipeline(
        visualizer.vae.to(torch.bfloat16),
        None,
        None,
        visualizer.unet.eval().to(torch.bfloat16),
        DDIMScheduler.from_config(settings),
        None,
        None,
        requires_safety_checker=False,
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, size.context_len, size.context_dim)
    context = torch.randn(shape, device=device, dtype=torch.bfloat16)
    kinds = {
        "DDIM, 50 steps": (DDIMScheduler.from_config(settings), 50),
        "DPM++, 20 steps": (DPMSolverMultistepScheduler.from_config(settings), 20),
    }
    for name, (scheduler, num_steps) in kinds.items():
        pipeline.scheduler = scheduler

        def paint(count: int = num_steps) -> object:
            return pipeline(
                prompt_embeds=context,
                negative_prompt_embeds=torch.zeros_like(context),
                num_inference_steps=count,
                guidance_scale=7.5,
                height=size.picture_size,
                width=size.picture_size,
                output_type="pt",
            )

        seconds = seconds_of(paint, max(3, flags.steps // 4))
        goal = GOAL_SECONDS[name]
        reached = "reached" if seconds <= goal else "NOT reached"
        told = f"   goal <= {goal} s: {reached}" if device.type == "cuda" else ""
        print(f"{name:58s} {seconds:8.3f} s{told}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="sd15", choices=["sd15", "tiny"])
    parser.add_argument("--batch_size", type=int, default=48, help="pictures of one update")
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed")
    parser.add_argument("--no_compile", action="store_true", help="without torch.compile")
    flags = parser.parse_args()
    size = {"sd15": SD15, "tiny": TINY}[flags.size]
    print_versions("torch", "diffusers", "accelerate")
    print(
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not a measurement"
    )
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        visualizer = measure_training(size, flags, Path(folder))
    measure_sampling(visualizer, size, flags)


if __name__ == "__main__":
    main()
