"""Where a recipe runs: one word of its argument, as in `configs/vpit_8b.py:v5e`.

Each recipe has a table of its own, because what fits depends on the model. The batch is that of the
recipe on all hardware; devices that cannot hold their rows at once take them in several parts.
"""

from metamorph_jax.errors import UserError


def device(mesh, max_rows, *, remat="full", attention="auto", vocab_chunk_size=16384):
    """Returns an entry of such a table.

    Args:
        mesh: devices per axis; axes that are left out have one.
        max_rows: rows that a device (with `context`: those that share rows) holds at once.
        remat: of the decoder.
        attention: of the decoder; `splash` is the kernel of TPUs.
        vocab_chunk_size: of the cross-entropy.
    """
    return {
        "mesh": {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | mesh,
        "max_rows": max_rows,
        "llm": {"remat": remat, "attention": attention},
        "loss": {"vocab_chunk_size": vocab_chunk_size},
    }


def words(arg, recipe, **tables):
    """Returns one word of the argument for each table: the one given, or the table's first.

    Args:
        arg: what follows the colon: words in any order with commas between them, or nothing.
        recipe: its file, for messages.
        **tables: the words to choose from.
    """
    chosen = {name: next(iter(table)) for name, table in tables.items()}
    for word in filter(None, arg.split(",")):
        homes = [name for name, table in tables.items() if word in table]
        if not homes:
            known = "; ".join(f"{name}: {', '.join(table)}" for name, table in tables.items())
            raise UserError(f"{recipe}:{arg}: no word {word!r} here; {known}")
        chosen[homes[0]] = word
    return tuple(chosen.values())


def put_on(config, entry):
    """Makes the recipe one for this hardware: mesh, remat, attention, parts of the batch."""
    mesh = entry["mesh"]
    config.mesh = mesh
    config.model["llm"].update(entry["llm"])
    for stage in config.stages:
        stage["loss"] = stage.get("loss", {}) | entry["loss"]
        rows = stage["global_batch_size"] // (mesh["data"] * mesh["fsdp"])
        counts = [count for count in range(1, entry["max_rows"] + 1) if rows % count == 0]
        stage["grad_accum_steps"] = rows // counts[-1]
