"""Parameters, state and optimizer in one file that every backend can go on from."""

from portopt.checkpoints.file_format import CheckpointError as CheckpointError
from portopt.checkpoints.loading import load as load
from portopt.checkpoints.saving import save as save
