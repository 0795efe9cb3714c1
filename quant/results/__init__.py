"""What was measured, judged and kept: targets, records, comparisons, history, gate. Measures and prints nothing."""
