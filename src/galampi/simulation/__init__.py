"""Thousands of ranks in virtual time, by the project's own rules.

Owns virtual ranks, the network between them and what is measured. What the ranks do to each other is not here: that is
`galampi.gossip`, over mailboxes in the memory of this process.
"""
