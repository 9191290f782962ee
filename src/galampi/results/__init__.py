"""The files of a run: writing them, reading them, checkpoints.

This wing knows h5py and numpy. It knows neither MPI nor torch, and imports pandas and xarray only in the
methods that return their objects, so that a command on a login node starts at once.
"""

from galampi.results.checkpoint import load_checkpoint, previous_checkpoint, save_checkpoint
from galampi.results.distance import ConsensusDistance
from galampi.results.energy import EnergyMeter, visible_gpus
from galampi.results.folder import new_folder
from galampi.results.job_file import JobFile
from galampi.results.reader import RankFile, Run, Table, open_run
from galampi.results.schema import SCHEMA_VERSION, UpdateRow, flush_period_s
from galampi.results.sketch import Sketch
from galampi.results.writer import Position, RankWriter, Restart

__all__ = [
    "SCHEMA_VERSION",
    "ConsensusDistance",
    "EnergyMeter",
    "JobFile",
    "Position",
    "RankFile",
    "RankWriter",
    "Restart",
    "Run",
    "Sketch",
    "Table",
    "UpdateRow",
    "flush_period_s",
    "load_checkpoint",
    "new_folder",
    "open_run",
    "previous_checkpoint",
    "save_checkpoint",
    "visible_gpus",
]
