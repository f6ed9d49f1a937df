"""The embedded generator: a small SkyReels-V2 pipeline folder, its data, training and judge."""
