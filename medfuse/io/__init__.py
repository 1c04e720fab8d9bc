"""The outer world to and from `Volume`: DICOM, NIfTI, NRRD, MetaImage. The door is `medfuse.io.files`."""
