"""Reading and writing files.

atomic.py         writing a file so that it is there whole or not at all
lock.py           keeping a second writer out
images.py         reading image files of all kinds as 8-bit RGB
pictures.py       colours as 8-bit pictures, and writing those as PNG, JPEG, WebP or TIFF
movie.py          frames as MP4, GIF or WebP
pyramid.py        pyramidal TIFF files that are rendered tile by tile
partial_tiff.py   such a file while it is unfinished, so that an interrupted one can be resumed
untrusted.py      opening files of unknown origin, and telling checkpoints apart by their first bytes
torch_files.py    reading what `torch.save` wrote, without executing anything
"""
