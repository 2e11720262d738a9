"""Looks through data before a run is booked: what is there, and what is wrong with it.

    findings    what can be wrong, how bad it is, and where it is written down
    texts       a conversation's words
    media       an image file or a video
    examine     one record: everything that can be said without the others
    duplicates  what records have in common
    survey      a stage: all its records, and the rows that they fill

`python -m metamorph_jax.lint` is the front door; `report/lint_page.py` draws the page. Start
reading at `survey.py`.
"""
