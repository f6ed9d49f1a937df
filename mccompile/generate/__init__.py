"""Drives pipelines: videos in and out, schedules told to the clock."""
