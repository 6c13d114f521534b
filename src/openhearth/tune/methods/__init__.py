"""Methods of tuning: what each reads before a run, and the loop it hands to `training.train`."""
