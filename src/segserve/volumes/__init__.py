"""One volume, bytes to label map. Arrays are (Z, Y, X); world frames are named where they matter."""
