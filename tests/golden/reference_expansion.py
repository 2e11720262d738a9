"""How the references put a batch together, from our plans of images and videos.

We never do this: our examples are built from parts, so that the number of images is right by
construction (`data/templates.py`), and packed into rows. Where the references do what we would
refuse, it says so here:

- surplus images are ignored by both; ours: the record is refused (`tag_mismatch`);
- with too few images LLaVA-1.1 fails, NeXT shows the last one once more; ours: refused;
- a row without images uses one up; ours needs none;
- NeXT drops the rows beyond its list of modalities; ours has no such list;
- padding stays inside rows of LLaVA-1.1, wherever it was; ours has none before packing;
- rows are cut at any token, within an image too; ours are cut between images or not at all.
"""

import numpy as np

from metamorph_jax.data.anyres import anyres_plan, merge_views, parse_pinpoints, single_view_plan
from metamorph_jax.data.frame_tokens import frame_tokens, pool_frames

IMAGE, IGNORED = -200, -100
NEWLINE = np.full((1, 1), -1.0)


def expand(case):
    """Returns embeds, out_labels, out_attention_mask and out_position_ids of a batch.

    Raises:
        IndexError: LLaVA-1.1 has too few images.
    """
    is_next = case["protocol"] == "next"
    rows = list(zip(case["input_ids"], case["labels"], masks(case), strict=True))
    images = [image_tokens(case, index) for index in range(len(case["image_tiles"]))]
    expanded, used = [], 0
    for ids, labels, mask in rows:
        if is_next:
            kept = np.flatnonzero(mask)
            ids, labels = [ids[i] for i in kept], [labels[i] for i in kept]
        row, used = expand_row(ids, labels, images, used, reuse_last=is_next)
        cut = case["config"].get("tokenizer_model_max_length")
        expanded.append(row[: cut if is_next else None])
    if is_next:
        expanded = expanded[: len(case["modalities"])]
    return collate(case, expanded)


def masks(case):
    given = case["attention_mask"]
    return given if given is not None else [[1] * len(ids) for ids in case["input_ids"]]


def image_tokens(case, index):
    """Returns the tokens [n] that an image becomes, one number each."""
    config, side, tile = case["config"], case["patches_per_side"], case["tile"]
    views = np.arange(case["image_tiles"][index])[:, None] * 10000.0
    features = ((index + 1) * 1e6 + views + np.arange(side * side))[..., None]
    modality = (case["modalities"] * len(case["image_tiles"]))[index]
    if modality == "video":
        assert not config["add_faster_video"]
        maps = features.reshape(-1, side, side, 1)
        pooled = pool_frames(maps, config["mm_spatial_pool_mode"])
        return frame_tokens(pooled, NEWLINE, config["mm_newline_position"])[:, 0]
    merge = config["mm_patch_merge_type"]
    if len(features) == 1:
        plan = single_view_plan(side, merge)
    else:
        pinpoints = parse_pinpoints(config["image_grid_pinpoints"], tile)
        size = tuple(case["image_sizes_wh"][index])
        cap = config["image_aspect_ratio"].removeprefix("anyres").removeprefix("_max_")
        cap = int(cap) if cap else None
        plan = anyres_plan(size, pinpoints, tile, side, max_tiles=cap, merge=merge)
    assert plan.num_views == len(features)
    return merge_views(features, NEWLINE, plan)[:, 0]


def expand_row(ids, labels, images, used, reuse_last):
    """Returns (embedding, label) of every position, and how many images are used up now."""
    row = []
    for token, label in zip(ids, labels, strict=True):
        if token != IMAGE:
            row.append((token, label))
            continue
        if used >= len(images) and not reuse_last:
            raise IndexError("more tags than images")
        row += [(value, IGNORED) for value in images[min(used, len(images) - 1)].tolist()]
        used += 1
    return row, used + (IMAGE not in ids)


def collate(case, rows):
    """Returns rows padded to the longest, and what the reference says beside them."""
    longest = max(map(len, rows))
    left = case["config"].get("tokenizer_padding_side") == "left"

    def pad(values, filler):
        padding = [filler] * (longest - len(values))
        return padding + values if left else values + padding

    mask = None
    if case["attention_mask"] is not None:
        lengths = zip(rows, case["attention_mask"], strict=False)
        real = [
            [1] * len(row)
            if case["protocol"] == "next"
            else [1] * (len(row) - len(given)) + given  # images only make a row longer
            for row, given in lengths
        ]
        mask = [pad(values, 0) for values in real]
    return {
        "embeds": [pad([value for value, _ in row], 0) for row in rows],
        "out_labels": [pad([label for _, label in row], IGNORED) for row in rows],
        "out_attention_mask": mask,
        "out_position_ids": None,
    }
