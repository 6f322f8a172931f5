"""`make bench`: every benchmark, one after another."""

from benchmarks import memory, stitching, tiles, training, volume

if __name__ == "__main__":
    memory.main()
    volume.main()
    stitching.main()
    tiles.main()
    training.main()
