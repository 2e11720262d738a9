"""The mapping tables of all parts of a model, with names as `layouts.py` defines them."""

from metamorph_jax.config.schema_model import ModelConfig
from metamorph_jax.hub import clip, llama, siglip
from metamorph_jax.hub.table import Row, Table

TOWERS = {"siglip": siglip, "clip": clip}
_VISION_HEAD_LAYERS = {"linear": 1, "mlp": 2, "mlp2x_gelu": 3}


def part_tables(config: ModelConfig) -> dict[str, Table]:
    """Returns the table of every part by its name in our tree.

    A model without vision head or newline vector has none for it. The contrastive head of a tower
    of one's own has no counterpart in any checkpoint and no table.
    """
    tables = {
        "vision_tower": TOWERS[config.vision.family].table(config.vision),
        "connector": connector_table(config),
        "language_model": llama.table(config.llm),
    }
    if config.image_newline:
        tables["image_newline"] = newline_table(config)
    if config.vision_head != "none":
        tables["vision_head"] = vision_head_table(config)
    return tables


def connector_table(config: ModelConfig) -> Table:
    """Returns the table of the connector."""
    width = config.llm.embed_dim
    return _mlp_table((config.visual_dim,) + (width,) * config.num_connector_layers)


def vision_head_table(config: ModelConfig) -> Table:
    """Returns the table of the vision head."""
    num_layers = _VISION_HEAD_LAYERS[config.vision_head]
    return _mlp_table((config.llm.embed_dim,) * num_layers + (config.visual_dim,))


def newline_table(config: ModelConfig) -> Table:
    """Returns the table of the newline vector."""
    rows = [Row("embedding", "vector", "D -> D")]
    return Table(rows=rows, sizes={"D": config.llm.embed_dim}, num_layers=0)


def _mlp_table(widths: tuple[int, ...]) -> Table:
    """Returns the table of Linear layers at the even places of a torch Sequential."""
    rows, sizes = [], {}
    single = len(widths) == 2  # then there is a bare Linear, without a number
    for i, width in enumerate(widths):
        sizes[f"d{i}"] = width
    for i in range(len(widths) - 1):
        theirs = "" if single else f"{2 * i}."
        layout = f"d{i + 1} d{i} -> d{i} d{i + 1}"
        rows.append(Row(f"layers_{i}/kernel", f"{theirs}weight", layout))
        rows.append(Row(f"layers_{i}/bias", f"{theirs}bias", f"d{i + 1} -> d{i + 1}"))
    return Table(rows=rows, sizes=sizes, num_layers=0)
