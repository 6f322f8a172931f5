"""What Segserve does, shown end to end on real data: ``python -m demo``."""

import os

# Set before torch is loaded: its threads then sleep while they wait for each other instead of spinning. Where other
# work shares the processor, training is several times faster so.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
