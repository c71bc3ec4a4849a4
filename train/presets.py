"""Presets: default values of options that the user does not give."""

# The published training: 8 GPUs with 4 images each. The generator's learning rate is 4/5 of 2e-3: the published code
# makes this correction for a regulariser that it no longer uses.
CIPS = {
    "kimg": 25000.0,
    "batch": 32,
    "width": 512,
    "style_features": 512,
    "mapping_layers": 8,
    "embedding_std": 1.0,
    "max_frequency": 4.5**0.5,
    "rgb_std": 1.0,
    "style_std": 1.0,
    "style_mixing": 0.0,
    "d_channels": 512,
    "d_base": 32768,
    "g_lr": 1.6e-3,
    "d_lr": 2e-3,
    "r1_gamma": 10.0,
    "r1_every": 16,
    "ema_kimg": 10.0,
    "ema_ramp_up": 0.05,
    "log_every": 100,
}

# Narrow networks and coarse patches, which make visible progress in minutes on a few cores.
CPU = CIPS | {
    "kimg": 100.0,
    "batch": 16,
    "width": 128,
    "style_features": 128,
    "mapping_layers": 2,
    "embedding_std": 0.02,
    "max_frequency": 4.0,
    "rgb_std": 0.25,
    "style_std": 0.5,
    "d_channels": 256,
    "d_base": 2048,
    "g_lr": 2.5e-3,
    "d_lr": 2.5e-3,
    "r1_gamma": 1.0,
    "ema_kimg": 2.0,
    "log_every": 25,
}

# Data sets with a name. The CPU preset mirrors their images, in which left and right look alike. In a user's images
# left and right may differ: text, clocks, traffic.
NAMED_DATA = ("landscapes", "bluemarble")

PRESETS = {"cips": CIPS, "cpu": CPU}
MAX_CROP = {"cips": 256, "cpu": 32}
