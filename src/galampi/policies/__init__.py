"""A stored policy put to use: found, averaged over the ranks, played, filmed, exported.

This room sees `learning` and `results`, and never MPI. `stored` alone knows no torch either, for it only finds and
averages checkpoints.
"""
