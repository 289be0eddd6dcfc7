"""Data sets as tensorflow-datasets builders that neither write nor read with tensorflow."""
