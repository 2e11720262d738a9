"""From a user's file to fixed-shape batches, on the host.

    records       one validated line of a LLaVA-format file
    conversation  turns made of text and images; the only place that reads "<image>"
    tokenizer     a local Hugging Face folder; content can never become a control id
    templates     conversation -> example (ids, what is supervised, image slots)
    packing       which examples share a row: a pure function of (seed, stage, epoch)
    images        an image file, read safely, as uint8 pixels
    rows          examples -> the arrays of one row
    loader        grain: threads, worker processes, prefetch
    pipeline      all of it: step -> Batch
    captions      the same for image/caption pairs (encoder pretraining)
    digits        writes the demo data set

Start reading at `records.py`. Nothing here imports jax.
"""
