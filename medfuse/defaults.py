"""What holds where nothing is said, in the command line, in the rules of a node and in Python alike."""

#: How two images are fused: a key of `medfuse.fusion.METHODS`.
METHOD = "duet"
