"""Names of files and folders that several packages use."""

from __future__ import annotations

RECIPE_NAME = "recipe.yaml"
INDEX_NAME = "model_index.json"  # of a pipeline folder, written last
JOB_NAME = "job.json"  # of a folder of samples, written first
MAX_JOB_BYTES = 2**28  # of that file, which has a class and a prompt for every picture
IDENTITY_NAME = "identity.json"  # of a folder of features, written first
CHECKSUMS_NAME = "wvq_checksums.json"  # of a folder's weight files, beside them
FINGERPRINT_NAME = "data_fingerprint.json"  # which pictures a model or a cache was made from, beside it
ORIGIN_NAME = "origin.json"  # where an imported model comes from, beside it
TRAINING = "training"  # log, pictures and checkpoints of a stage, beside its weights
