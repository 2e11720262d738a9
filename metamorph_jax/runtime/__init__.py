"""What a process needs around its work: the other processes, compiled programs that are kept.

Read in this order: environment.py (how many processes, and who is this one), joining.py (meeting
them, and leaving), agreement.py (what is done once, or only if all can), compile_cache.py and
compiles.py (what is compiled, and how long that takes), profile.py (a trace of some steps),
stall.py (tells when nothing goes on).
"""
