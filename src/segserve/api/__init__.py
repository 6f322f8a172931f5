"""HTTP in, core call, HTTP out: the viewers' dialects, and what guards them."""
