"""mccompile: a compiler for motion-aware caching in video generators."""
