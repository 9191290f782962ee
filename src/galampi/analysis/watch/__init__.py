"""`watch`: a running job in the terminal, from the files it writes.

`view` is what is known of it, `picture` how that is drawn, `command` looks again and again. Reads only what is new at
each look, from any machine that sees the folder. Touches nothing of the job, which does not know that it is watched.
"""
