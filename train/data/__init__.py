"""Where training images come from: sources of whole images, and the patches that are cut from them."""
