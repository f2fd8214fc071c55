"""The built set of scripts/bench_explain: variants whose cause of slowness is known because it was put there."""
