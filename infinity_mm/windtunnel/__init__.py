"""The wind tunnel: a small drawn world whose truth is known, on which every part of the workbench is measured."""
