"""The one trainer of all dictionaries: settings, data, schedules, dead latents, checkpoints, logs."""
