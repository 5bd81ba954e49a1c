"""Images as tensors: decoding, augmentation, the store of a training, and the ingest of a data set."""
