"""Training steps, parameter groups, schedules, checkpoints and the loop."""
