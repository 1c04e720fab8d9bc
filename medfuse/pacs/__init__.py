"""The network of a hospital: rules that find pairs in a study, the container contract, and a DICOM node."""
