"""Training images: where they come from, and the patches that a step trains on.

images.py         what all sources share: protocol, error, cache folder
sources.py        opening a source by its name
folder.py         images of a folder or a .zip file
folder_cache.py   the cache of their decoded pixels
landscapes.py     vector landscapes that are drawn here; also the program of the processes that draw them
bluemarble.py     crops of a satellite image, or all of it as a panorama
patches.py        batches of patches, and their coordinates
"""
