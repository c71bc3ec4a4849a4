"""Files that are written whole or not at all, and files that are not trusted: pictures, movies, pyramids, locks."""
