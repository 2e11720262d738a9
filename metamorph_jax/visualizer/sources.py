"""Where training data comes from: the files on the command line, opened and checked."""

import dataclasses
from pathlib import Path

from metamorph_jax.errors import UserError
from metamorph_jax.metrics.progress import Progress
from metamorph_jax.visualizer.dataset import FeatureFiles
from metamorph_jax.visualizer.encoder import FrozenEncoder
from metamorph_jax.visualizer.feed import KeptLatents, PictureData
from metamorph_jax.visualizer.latent_cache import LatentCache, build_cache
from metamorph_jax.visualizer.latents import VaeLatents, create_latents
from metamorph_jax.visualizer.parts import Parts
from metamorph_jax.visualizer.pictures import Pictures, find_pictures
from metamorph_jax.visualizer.schema import VisualizerConfig, VisualizerRunConfig

Share = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the command line names.

    Attributes:
        image_root: folder of the pictures.
        features: features files, which list their pictures; or
        encoder: an exported MetaMorph, whose tower computes features while training runs.
        images: list of pictures for `encoder`, one path a line; None: all below `image_root`.
        latents: folder where latents are kept between runs; None: computed at every step.
    """

    image_root: Path
    features: tuple[Path, ...] = ()
    encoder: Path | None = None
    images: Path | None = None
    latents: Path | None = None

    def check(self, config: VisualizerConfig) -> None:
        """Raises a UserError if they contradict each other or the recipe."""
        if bool(self.features) == bool(self.encoder):
            raise UserError("give either --features=FILE or --encoder=FOLDER")
        if self.features and self.images:
            raise UserError("--images goes with --encoder; features files list their own pictures")
        if self.latents and config.latents.kind == "pixels":
            raise UserError("--latents is for latents.kind='vae'; pixels are kept in memory")

    def open_encoder(self, config: VisualizerConfig) -> FrozenEncoder | None:
        """Returns the frozen encoder, or None where features are read."""
        return FrozenEncoder(self.encoder, config) if self.encoder else None

    def open_data(self, config: VisualizerConfig, encoder: FrozenEncoder | None) -> PictureData:
        """Returns the training data, without latents yet.

        Raises:
            UserError: a file is missing, unreadable or does not fit `config`; names it.
        """
        if encoder is not None:
            found = find_pictures(self.image_root, self.images)
            return PictureData(found, encoder_size=encoder.image_size)
        features = FeatureFiles(self.features, config)
        listed_in = ",".join(map(str, self.features))
        return PictureData(Pictures(self.image_root, features.names, listed_in), features)


def with_latents(
    data: PictureData,
    config: VisualizerRunConfig,
    parts: Parts | None,
    folder: Path | None,
    share: Share = (0, 1),
) -> PictureData:
    """Returns the data with the latents that are kept: in memory (pixels) or on disk (`folder`).

    Args:
        data: training data.
        config: the recipe.
        parts: Stable Diffusion's, on the device that computes what is missing.
        folder: for latents of all runs; None: a VAE's latents are not kept.
        share: (number of this process, processes in all).

    Raises:
        UserError: a picture of `pixels` does not fit, or the disk is full.
    """
    latents = config.model.latents
    codec = create_latents(latents, parts and parts.vae)
    if not isinstance(codec, VaeLatents):
        kept = KeptLatents.of(data.pictures, codec, latents.picture_size)
        return dataclasses.replace(data, latents=kept)
    if folder is None:
        return data
    return dataclasses.replace(data, latents=_build(data, config, parts, codec, folder, share))


def _build(
    data: PictureData,
    config: VisualizerRunConfig,
    parts: Parts,
    codec: VaeLatents,
    folder: Path,
    share: Share,
) -> LatentCache:
    """Returns the cache of these pictures, completed; the first process tells how far it is."""
    progress = Progress(len(data.pictures), "picture", label="latents", log_interval=1)
    cache = build_cache(
        folder,
        data.pictures,
        codec,
        config.model.latents,
        parts.vae_fingerprint,
        view=config.model.view,
        num_workers=config.data.num_workers,
        share=share,
        report=progress.update if share[0] == 0 else lambda count: None,
    )
    progress.close()
    return cache
