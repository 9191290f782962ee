"""From the files of a run to numbers and pictures: distances, the bound, the report, the live view.

This room sees `results` and `job`, and never torch or MPI: all of it runs on a login node.
"""
