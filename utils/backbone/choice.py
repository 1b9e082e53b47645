"""Which backbone a run uses."""
PRETRAINED = ("efficientnet-lite0",)
PIXELS = ("imagenet", "0..1", "-1..1", "0..255")
DEFAULT_PIXELS = "imagenet"
