"""From a user's files to fixed-shape batches, on the host.

    sources/      files of every format, as records by number
    records       one validated record, whatever file it comes from
    kinds/        what is made of a record: MetaMorph's six kinds of samples
    conversation  turns made of texts and images; the only place that reads "<image>"
    tokenizer     a local tokenizer folder; content can never become a control id
    templates/    conversation -> example (ids, what is supervised, image slots)
    examples      all of this by number, read when asked for
    example_table what every example measures, kept beside the run
    packing       which examples share a row
    plan          the rows of a whole stage: a pure function of (seed, step), kept as files
    media         what an image is: a file, bytes, a frame of a video, a region
    images        media, opened safely, as uint8 pixels (feature_loader: as features of the tower)
    rows          examples -> the arrays of one row
    loader        grain: threads, worker processes, prefetch
    quarantine    bad samples: written down, left out, counted against a budget
    pipeline      all of it: step -> Batch
    captions      the same for image/caption pairs (encoder pretraining)
    digits        writes the demo data set
    shapes/       a world of shapes, drawn when asked for
    lint/         what is wrong with a data set, before anything is booked

Start reading at `records.py`. Nothing here imports jax.
"""
