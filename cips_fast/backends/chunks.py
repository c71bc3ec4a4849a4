"""How pixels are divided into chunks, so that an image's bits do not depend on where it is divided.

A matrix product of few rows may be summed in another order than one of many rows. From 16 rows on, a row of a float32
product was seen to be the same, bit for bit, whatever the number of other rows.
"""

MIN_PIXELS = 64  # of a product; four times the 16 above


def chunks(count: int, size: int) -> list[slice]:
    """Divide `count` pixels into consecutive chunks of at most `size` pixels.

    No chunk has fewer than `MIN_PIXELS` pixels, provided that `count` is not smaller and `size` is at least twice that.
    """
    ends, end = [], size
    while end < count:  # not a range, which would tie a compiled graph to one count
        ends.append(end)
        end += size
    if count:
        ends.append(count)
    if len(ends) > 1 and count - ends[-2] < MIN_PIXELS <= size // 2:
        ends[-2] = count - MIN_PIXELS
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
