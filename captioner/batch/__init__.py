"""Many photographs: inputs to items, items to records, records to a file that survives whatever happens.

The way of a batch, one file for each step: ``items.py`` (which photographs) → ``engine.py`` (their records)
→ ``log.py`` (written down for good) → ``sidecars.py`` and ``export.py`` (other forms of the same), joined in
``run.py``. What runs elsewhere, as on a cluster, is another :class:`~captioner.batch.engine.Engine`.
"""
