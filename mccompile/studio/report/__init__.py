"""What a run did, recorded while it runs, and shown as one page that needs nothing else."""
