"""The headings that options are listed under in a verb's help, in their order. Light: ``skdeploy --help`` imports it."""

from __future__ import annotations

from enum import StrEnum


class Panel(StrEnum):
    INPUT = "Input"
    GRAPH = "Graph"
    PRECISION = "Precision"
    CALIBRATION = "Calibration"
    ACCURACY = "Accuracy"
    PARITY = "Parity"
    ENGINE = "Engine"
    SHARDS = "Many machines"
    OUTPUT = "Output"
