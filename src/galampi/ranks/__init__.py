"""What a process knows of the other ranks, and of its launcher, before anything heavy is imported.

Here live placement on nodes and cores, the one voice in which ranks raise mistakes, and the care with which torch is
imported. Nothing here may know what the ranks do.
"""
