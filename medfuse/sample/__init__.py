"""The embedded sample: a digital head made wholly by medfuse, scanned three times and written as DICOM series."""

from medfuse.sample.head import HeadScans, SampleFolders, head_scans, write_sample
from medfuse.sample.series import Study, write_series

__all__ = ["HeadScans", "SampleFolders", "Study", "head_scans", "write_sample", "write_series"]
