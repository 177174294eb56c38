"""Many photographs: inputs to items, items to records, records to a file that survives whatever happens.

The way of a batch, one file for each step: ``items.py`` (which photographs) → ``engine.py`` (their records)
→ ``log.py`` (written down for good, with what they were made with: ``origin.py``) → ``sidecars.py`` and
``export.py`` (other forms of the same), joined in ``run.py``. What other programs wrote is read by
``texts.py``, ``xmp.py`` and ``embedded.py``, and finished records by ``reading.py``. ``command.py`` and the
other ``…_command.py`` are the command lines, ``settings.py`` the options that they share, ``job.py`` what is
put together from them, ``outputs.py`` a run's files, and ``progress.py`` says how it goes, from
``counts.py``. What runs elsewhere, as on a cluster, is another :class:`~captioner.batch.engine.Engine`.
"""
