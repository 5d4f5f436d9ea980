"""Records of the catalogue's entry `dolly`."""

import tensorflow_datasets as tfds

from dynamics.data.catalogue import entry
from dynamics.data.tfds_base import EntryBuilder


class Builder(EntryBuilder):
    """Records of `dolly`, in the order of the published files."""

    VERSION = tfds.core.Version("1.0.0")
    ENTRY = entry("dolly")
