"""How an alignment is found. Only `align.register` looks in here.

intensities   what of a volume is compared
pyramid       the same at several resolutions
search        every shift at many orientations: where to start
information   normalized mutual information at a transform, and its slope
refine        uphill from a start
second        another engine, for a second opinion
deformable    what is left after a linear transform
"""
