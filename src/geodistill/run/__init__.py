"""The run folder: stages, fingerprints, atomic writes, resume.

A run is a folder. Each stage is a sub-folder that appears only when it is complete: the stage is first written to
`.<stage>.partial`, its files are flushed to disk, and the folder is renamed. Long stages keep their own checkpoints in
the partial folder, so a run killed at any moment resumes where it stopped.
"""

from geodistill.memory import peak_memory_mib
from geodistill.run.cost import records, versions
from geodistill.run.files import explain_os_errors, save_tensors, write_atomic, written_whole
from geodistill.run.folder import Run, stage_of
from geodistill.run.parts import forget_part_folders, forget_parts, join_parts, kept_parts, make_parts, save_rows
from geodistill.run.rows import Rows, Stored, column, in_parts, mean_of, subset
from geodistill.run.secret import read_secret

__all__ = [
    "Rows",
    "Run",
    "Stored",
    "column",
    "explain_os_errors",
    "forget_part_folders",
    "forget_parts",
    "in_parts",
    "join_parts",
    "kept_parts",
    "make_parts",
    "mean_of",
    "peak_memory_mib",
    "read_secret",
    "records",
    "save_rows",
    "save_tensors",
    "stage_of",
    "subset",
    "versions",
    "write_atomic",
    "written_whole",
]
