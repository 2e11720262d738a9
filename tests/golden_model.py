"""Golden cases in our terms: configuration, packed batch, and gradients by Hugging Face name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metamorph_jax.config.schema_model import (
    LlamaConfig,
    ModelConfig,
    RopeScaling,
    VisionConfig,
    VisualTokensConfig,
)
from metamorph_jax.hub import metamorph
from metamorph_jax.hub.layouts import to_own
from metamorph_jax.models.metamorph import MetaMorph
from metamorph_jax.objectives.reduce import weighted_mean
from metamorph_jax.objectives.text import text_loss, text_loss_per_token
from metamorph_jax.objectives.visual import visual_loss
from tests.hub_folders import import_params

IGNORED_LABEL = -100


def model_config(config: dict, **changes) -> ModelConfig:
    """Returns our configuration of a golden case; `changes` replace its JSON entries."""
    config = config | changes
    tokens = VisualTokensConfig(
        reduction=config["image_token_reduction"],
        num_tokens=config["num_image_tokens"],
        normalize=config["normalize_vision"],
        softmax_temperature=config["softmax_temperature"] if config["apply_softmax"] else None,
    )
    return ModelConfig(
        llm=llama_config(config["llm"]),
        vision=vision_config(config["vision"], config["select_layer"]),
        visual_tokens=tokens,
        connector=config["projector"],
        vision_head=config["vision_head"],
    )


def llama_config(hf: dict) -> LlamaConfig:
    """Returns our decoder configuration of a Hugging Face one, with a padded vocabulary."""
    scaling = hf["rope_scaling"] or {}
    rope = RopeScaling()
    if scaling:
        rope = RopeScaling(
            kind=scaling["rope_type"],
            factor=scaling["factor"],
            low_freq_factor=scaling["low_freq_factor"],
            high_freq_factor=scaling["high_freq_factor"],
            original_max_seq_len=scaling["original_max_position_embeddings"],
        )
    return LlamaConfig(
        vocab_size=hf["vocab_size"],
        vocab_multiple=48,
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf["num_key_value_heads"],
        head_dim=hf["hidden_size"] // hf["num_attention_heads"],
        embed_dim=hf["hidden_size"],
        mlp_dim=hf["intermediate_size"],
        max_seq_len=hf["max_position_embeddings"],
        rope_theta=hf["rope_theta"],
        rope_scaling=rope,
        norm_eps=hf["rms_norm_eps"],
        tie_embeddings=hf["tie_word_embeddings"],
    )


def vision_config(hf: dict, feature_layer: int) -> VisionConfig:
    """Returns our tower configuration of a Hugging Face SigLIP one."""
    return VisionConfig(
        family="siglip",
        image_size=hf["image_size"],
        patch_size=hf["patch_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        embed_dim=hf["hidden_size"],
        mlp_dim=hf["intermediate_size"],
        norm_eps=hf["layer_norm_eps"],
        feature_layer=feature_layer,
    )


def with_prefix(tensors: dict, prefix: str) -> dict:
    """Returns the tensors whose name starts with `prefix`, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Returns [..., height, width, 3] of torch's [..., 3, height, width]."""
    return np.moveaxis(pixels, -3, -1)


class Packed:
    """A golden batch in our form, one sample per row, and what the reference's packing gives.

    Attributes:
        batch: as our `Batch`, images floating and already normalised.
        expanded_labels: labels after packing.
        expanded_mask: 1 on real positions.
        supervised: 1 on visual tokens that are to be predicted.
        table: one line per visual token: sample, position, image, token, supervised or not.
    """

    def __init__(self, inputs: dict, config: dict, rows: list[int] | None = None):
        rows = list(range(len(inputs["input_ids"]))) if rows is None else rows
        self._config = config
        first_image = np.concatenate([[0], np.cumsum(inputs["images_per_sample"])])
        samples = [self._sample(inputs, row, first_image[row]) for row in rows]
        length = max(len(s["labels"]) for s in samples)
        num_images = max(int(inputs["images_per_sample"][row]) for row in rows)
        self._allocate(len(rows), length, num_images)
        self.table = np.concatenate(
            [
                np.array([[i, *line] for line in s["visual"]], np.int32).reshape(-1, 5)
                for i, s in enumerate(samples)
            ]
        )
        pixels = channels_last(inputs["pixel_values"])
        for i, (row, sample) in enumerate(zip(rows, samples, strict=True)):
            self._fill(i, sample, first_image[row])
            own = pixels[first_image[row] : first_image[row + 1]]
            self.batch["images"][i, : len(own)] = own

    def _sample(self, inputs: dict, row: int, image: int) -> dict:
        """Returns tokens, labels and visual tokens of one sample, following the README."""
        config, size = self._config, self._config["num_image_tokens"]
        real = inputs["attention_mask"][row] == 1
        ids, labels = inputs["input_ids"][row][real], inputs["labels"][row][real]
        tokens, new_labels, visual = [], [], []
        for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if token != config["image_placeholder_id"]:
                tokens.append(token)
                new_labels.append(label)
                continue
            supervised = int(labels[i - 1] == config["image_start_id"])
            visual += [[len(tokens) + k, image, k, supervised] for k in range(size)]
            tokens += [0] * size
            new_labels += [IGNORED_LABEL] * size
            image += 1
        return {"tokens": tokens, "labels": new_labels, "visual": visual}

    def _allocate(self, num_rows: int, length: int, num_images: int) -> None:
        shape, size = (num_rows, length), self._config["vision"]["image_size"]
        self.batch = {
            "tokens": np.zeros(shape, np.int32),
            "targets": np.zeros(shape, np.int32),
            "loss_mask": np.zeros(shape, bool),
            "segment_ids": np.zeros(shape, np.int32),
            "positions": np.zeros(shape, np.int32),
            "visual_index": np.full(shape, -1, np.int32),
            "visual_target": np.full(shape, -1, np.int32),
            "images": np.zeros((num_rows, num_images, size, size, 3), np.float32),
        }
        self.expanded_labels = np.full(shape, IGNORED_LABEL, np.int32)
        self.expanded_mask = np.zeros(shape, np.int32)
        self.supervised = np.zeros(shape, np.int32)

    def _fill(self, i: int, sample: dict, first_image: int) -> None:
        size, batch = self._config["num_image_tokens"], self.batch
        length, labels = len(sample["tokens"]), np.array(sample["labels"])
        batch["tokens"][i, :length] = sample["tokens"]
        batch["segment_ids"][i, :length] = 1
        batch["positions"][i, :length] = np.arange(length)
        following = labels[1:]
        batch["loss_mask"][i, : length - 1] = following != IGNORED_LABEL
        batch["targets"][i, : length - 1] = np.where(following != IGNORED_LABEL, following, 0)
        for position, image, token, supervised in sample["visual"]:
            index = (image - first_image) * size + token
            batch["visual_index"][i, position] = index
            if supervised:
                batch["visual_target"][i, position - 1] = index
                self.supervised[i, position] = 1
        self.expanded_labels[i, :length] = labels
        self.expanded_mask[i, :length] = 1

    def rows_of_images(self, flat: np.ndarray, images_per_sample: np.ndarray) -> np.ndarray:
        """Returns [rows, images, ...], unused places zero, of the reference's flat order."""
        rows = np.zeros((len(images_per_sample), images_per_sample.max(), *flat.shape[1:]), "f4")
        first = np.concatenate([[0], np.cumsum(images_per_sample)])
        for i, count in enumerate(images_per_sample):
            rows[i, :count] = flat[first[i] : first[i] + count]
        return rows

    def flat_images(self, rows: np.ndarray, images_per_sample: np.ndarray) -> np.ndarray:
        """Returns [images, ...] in the reference's flat order of our [rows, images, ...]."""
        return np.concatenate([rows[i, :n] for i, n in enumerate(images_per_sample)])


def losses(params: dict, features, batch: dict, config: ModelConfig, kind: str, weight: float):
    """Returns (total, parts) as a training step computes them, with a small vocabulary chunk."""
    model = MetaMorph(config)

    def call(method, *args):
        return model.apply({"params": params}, *args, method=method)

    visual = call("connect", features)
    embeddings = call("embed", batch["tokens"], batch["visual_index"], visual)
    hidden = call("decode", embeddings, batch["segment_ids"], batch["positions"])
    prediction = call("predict_visual", hidden)
    head = model.head_table(params)
    chunked = {"vocab_size": config.llm.vocab_size, "chunk_size": 100}
    text = text_loss(hidden, head, batch["targets"], batch["loss_mask"], **chunked)
    loss = visual_loss(prediction, features, batch["visual_target"], kind)
    parts = {
        "text": weighted_mean(text.sum, text.count),
        "visual": weighted_mean(loss.loss.sum, loss.loss.count),
        "cosine": weighted_mean(loss.cosine.sum, loss.cosine.count),
        "text_count": jnp.sum(text.count),
        "visual_count": jnp.sum(loss.loss.count),
        "projected": visual,
        "embeddings": embeddings,
        "hidden": hidden,
        "raw": call("predict_visual_raw", hidden),
        "prediction": prediction,
        "text_per_token": text_loss_per_token(
            hidden, head, batch["targets"], batch["loss_mask"], **chunked
        ),
    }
    return parts["text"] + weight * parts["visual"], parts


class GoldenRun:
    """One golden case, computed from our features or from given ones.

    Attributes:
        features: of our tower.
        params: whole tree, from the case's weights.
        trained: all but the tower.
    """

    def __init__(
        self, config: ModelConfig, weights: dict, packed: Packed, kind: str, weight: float
    ):
        self.config, self.packed = config, packed
        self.params = jax.tree.map(jnp.asarray, import_params(weights, config))
        self._names = {to_own("native", name): name for name in weights}
        self.trained = {k: v for k, v in self.params.items() if k != "vision_tower"}
        images = packed.batch["images"]
        encode = jax.jit(functools.partial(MetaMorph(config).apply, method="encode"))
        self.features = jax.device_get(encode({"params": self.params}, images))

        def loss(trained, features):
            return losses(trained, features, packed.batch, config, kind, weight)

        self._run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def evaluate(self, features: np.ndarray | None = None) -> tuple[float, dict, dict]:
        """Returns (total loss, values on the way, gradients); features: default ours."""
        features = self.features if features is None else features
        (total, parts), grads = jax.device_get(self._run(self.trained, features))
        return total, parts, grads

    def by_hf_name(self, trained: dict) -> dict[str, np.ndarray]:
        """Returns a tree shaped like the trained parameters as tensors with golden names."""
        tower = {"vision_tower": jax.device_get(self.params["vision_tower"])}
        tensors = metamorph.to_hf(jax.device_get(trained) | tower, self.config)
        return {self._names[to_own("native", name)]: value for name, value in tensors.items()}
