"""What stage 07 stands on: benchmarks, intervals, results, contamination."""
