"""What the command line, the rules of a node and Python share: what holds where nothing is said, and the notice."""

#: How two images are fused: a key of `medfuse.fusion.METHODS`.
METHOD = "duet"
#: The colours of uptake: a key of `medfuse.PALETTES`.
PALETTE = "HOT_IRON"
#: Our AE title.
AE_TITLE = "MEDFUSE"
#: What stands beside every result.
NOTICE = "Fused images are derived and not for diagnostic use."
