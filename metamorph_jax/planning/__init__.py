"""What a recipe needs on a machine that is not here: memory, FLOPs, collectives, time.

    topology.py     "v5p:4x4x4" -> a pod: devices to compile for, peaks of its chip
    compiling.py    the real train step of a stage, compiled for the pod
    hlo.py          the compiled text as instructions, with how often each is executed
    operations.py   FLOPs and bytes of memory of an instruction
    collectives.py  what devices exchange, over which mesh axis, and how fast they can
    plan.py         all of it for one stage, and whether it fits
    sweep.py        other batches, remat and meshes, ranked
    report.py       the text; plot.py the picture

Nothing is allocated and no data is read. Every number says where it comes from: `compiled` (read
from what the compiler made), `counted` (from shapes, by formula) or `assumed`.
"""
