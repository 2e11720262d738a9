"""How much faster the cached, compiled decoding loop is than re-running the prefix in torch.

    python benchmarks/decode.py [--quick] [--repeats=5]

One prompt of 256 text tokens, answered with one image of 64 visual tokens (66 steps with
`<image_start>` and `<image_end>`), decoder of width 512 with 8 layers, float32, the same weights
on both sides:

    ours     prefill, then one compiled while_loop with a key/value cache; one prompt, and 16
    torch    eager transformers LlamaForCausalLM on the whole, growing sequence at every step, as
             the reference implementation decodes (greedy_decode of its metamorph_llama.py), but
             without the logits of every position that it computes, too; one prompt, as it takes
             one; with one thread or with all, whichever is faster here

Both sides are measured in turn in this one run, compilation excluded. What makes the ratios count
is checked first, for one prompt and for the first of 16: the same ids, equal first visual tokens
when both run freely, and equal predictions all along when torch reads our tokens. (Free-running
feedback with random weights is chaotic: two correct float32 decoders drift apart after some fifty
visual tokens.)
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from timing import median_seconds, print_goal, print_versions
from torch_llama import torch_llama

from metamorph_jax.config.presets import llm_preset, vision_preset
from metamorph_jax.config.schema_model import ModelConfig, VisualTokensConfig
from metamorph_jax.decoding.loop import PromptBatch, Rules, decode_prompts
from metamorph_jax.decoding.sampling import GREEDY
from metamorph_jax.hub import metamorph
from metamorph_jax.models.init import init_params
from metamorph_jax.models.stack import unstack_blocks

PROMPT_TOKENS, QUICK_PROMPT_TOKENS, VISUAL_TOKENS = 256, 16, 64
GOAL, BATCH_GOAL = 12.0, 30.0
IMAGE_START, IMAGE_END, STOP_IDS = 318, 319, (316, 317)
NUM_FREE = 16  # visual tokens compared when both sides run freely
# Unit vectors of float32 after four blocks: rounding of order 1e-6, with room for other machines.
TOLERANCE = 1e-5
RULES = Rules(IMAGE_START, IMAGE_END, STOP_IDS, max_new_tokens=VISUAL_TOKENS + 2, max_images=1)


def make_config(quick: bool) -> ModelConfig:
    """Returns the model; if quick, one as small as the demos'."""
    wide = {"num_layers": 8, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64}
    wide |= {"embed_dim": 512, "mlp_dim": 1408}
    return ModelConfig(
        llm=llm_preset("digits", **({} if quick else wide)),
        vision=vision_preset("digits"),
        visual_tokens=VisualTokensConfig(num_tokens=VISUAL_TOKENS),
    )


def make_ours(
    config: ModelConfig, params: dict, prompt: list[int], num_rows: int = 1
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Returns a function that decodes and returns (steps, visual tokens) of the first row.

    Args:
        config: of the model.
        params: of the model.
        prompt: of the first row; the others are random ones of its length.
        num_rows: prompts at once.
    """
    first, length = np.array([prompt], np.int32), len(prompt)
    more = np.random.default_rng(1).integers(0, 300, (num_rows - 1, length), dtype=np.int32)
    size = config.vision.image_size
    prompts = PromptBatch(
        tokens=np.concatenate([first, more]),
        visual_index=np.full((num_rows, length), -1, np.int32),
        lengths=np.full(num_rows, length, np.int32),
        limits=np.full(num_rows, RULES.max_new_tokens, np.int32),
        images=np.zeros((num_rows, 0, size, size, 3), np.uint8),
    )
    params = unstack_blocks(params)
    # With no id allowed as text, all that a random model can say is one image.
    allowed = np.zeros(config.llm.padded_vocab_size, bool)

    def run():
        result = decode_prompts(config, RULES, params, prompts, allowed, GREEDY)
        steps, visual, _ = jax.device_get(tuple(result))
        return steps[0], visual[0][steps[0] < 0]

    return run


class TorchDecoder:
    """The same model in eager torch, without a cache."""

    def __init__(self, config: ModelConfig, params: dict):
        weights = metamorph.to_hf(jax.device_get(params), config)
        tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        self._llama = torch_llama(config.llm, params["language_model"]).eval()
        self._projector = _mlp(tensors, "model.mm_projector")
        self._vision_head = _mlp(tensors, "vision_head")

    def embed(self, tokens: list[int]) -> torch.Tensor:
        """Returns the embeddings of ids, [1, T, D]."""
        return self._llama.model.embed_tokens(torch.tensor([tokens]))

    def project(self, visual: torch.Tensor) -> torch.Tensor:
        """Returns what the decoder reads for visual tokens [T, E]: [1, T, D]."""
        return self._projector(visual)[None]

    def hidden(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states of a whole sequence, [T, D]."""
        return self._llama.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0]

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns normalised visual tokens."""
        return torch.nn.functional.normalize(self._vision_head(hidden), dim=-1)

    @torch.inference_mode()
    def decode(self, prompt: list[int]) -> np.ndarray:
        """Returns the visual tokens of the one image that is drawn after the prompt."""
        sequence, visual = self.embed(prompt), []
        for step in range(RULES.max_new_tokens):
            hidden = self.hidden(sequence)[-1]
            if 0 < step <= VISUAL_TOKENS:
                visual.append(self.predict(hidden))
                read = self.project(visual[-1][None])
            else:
                self._llama.lm_head(hidden).argmax()  # what it says is overruled, as in ours
                read = self.embed([IMAGE_END if step else IMAGE_START])
            sequence = torch.cat([sequence, read], dim=1)
        return torch.stack(visual).numpy()

    @torch.inference_mode()
    def predict_along(self, prompt: list[int], visual: np.ndarray) -> np.ndarray:
        """Returns what is predicted at each place when the tokens before it are `visual`."""
        head = self.embed([*prompt, IMAGE_START])
        read = self.project(torch.from_numpy(np.array(visual[:-1])))
        hidden = self.hidden(torch.cat([head, read], dim=1))
        return self.predict(hidden[-VISUAL_TOKENS:]).numpy()


def _mlp(tensors: dict[str, torch.Tensor], name: str) -> torch.nn.Sequential:
    """Returns linear, exact GELU, linear."""
    layers: list[torch.nn.Module] = []
    for place in (0, 2):
        weight, bias = tensors[f"{name}.{place}.weight"], tensors[f"{name}.{place}.bias"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, torch.nn.GELU()]
    return torch.nn.Sequential(*layers[:-1]).eval()


def check_parity(ours: tuple[np.ndarray, np.ndarray], theirs: TorchDecoder, prompt: list[int]):
    """Prints the largest differences; raises AssertionError if one is above the tolerance."""
    steps, visual = ours
    expected = [IMAGE_START, *[-1] * VISUAL_TOKENS, IMAGE_END]
    assert steps.tolist() == expected, "the answer is not one image"
    free = np.abs(theirs.decode(prompt)[:NUM_FREE] - visual[:NUM_FREE]).max()
    along = np.abs(theirs.predict_along(prompt, visual) - visual).max()
    print(f"parity  first {NUM_FREE} visual tokens, both running freely max |diff| {free:.1e}")
    print(
        f"parity  all {VISUAL_TOKENS} predictions, torch reading our tokens  max |diff| {along:.1e}"
    )
    assert max(free, along) <= TOLERANCE, f"the two sides differ by more than {TOLERANCE}"


def choose_torch_threads(decode: Callable[[], object]) -> None:
    """Sets torch to one thread or to all, whichever decodes faster."""
    times = {}
    for threads in (torch.get_num_threads(), 1):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        decode()
        times[threads] = time.perf_counter() - start
    best = min(times, key=times.get)
    torch.set_num_threads(best)
    seen = ", ".join(f"{1e3 * value:.0f} ms with {key}" for key, value in times.items())
    print(f"torch threads: {seen}; compared with {best}")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--rows", type=int, default=16, help="prompts of the batched measurement")
    flags = parser.parse_args()
    repeats = 1 if flags.quick else flags.repeats
    torch.set_num_threads(1)
    config = make_config(flags.quick)
    params = init_params(config, jax.random.key(0))
    num_tokens = QUICK_PROMPT_TOKENS if flags.quick else PROMPT_TOKENS
    prompt = np.random.default_rng(0).integers(0, 300, num_tokens).tolist()
    single, batched = (make_ours(config, params, prompt, rows) for rows in (1, flags.rows))
    theirs = TorchDecoder(config, params)
    print_versions("jax", "flax", "torch", "transformers")
    print(jax.default_backend())
    check_parity(single(), theirs, prompt)
    check_parity(batched(), theirs, prompt)
    if not flags.quick:
        torch.set_num_threads(os.cpu_count())
        choose_torch_threads(lambda: theirs.decode(prompt))
    runs = {"torch": lambda: theirs.decode(prompt), "one": single, "batch": batched}
    times = median_seconds(runs, repeats)
    per_answer = times | {"batch": times["batch"] / flags.rows}
    print(f"\n{'median of ' + str(repeats):44s} {'ms/answer':>10s} {'ratio':>7s}")
    for name, label in (
        ("torch", "torch eager, prefix re-run, one prompt"),
        ("one", "ours, cached and compiled, one prompt"),
        ("batch", f"ours, {flags.rows} prompts at once"),
    ):
        ratio = times["torch"] / per_answer[name]
        print(f"{label:44s} {1e3 * per_answer[name]:10.2f} {ratio:6.1f}x")
    print_goal("one prompt", times["torch"] / times["one"], GOAL, "{:.1f}x")
    name = f"{flags.rows} prompts at once, per prompt"
    print_goal(name, times["torch"] / per_answer["batch"], BATCH_GOAL, "{:.1f}x")


if __name__ == "__main__":
    main()
