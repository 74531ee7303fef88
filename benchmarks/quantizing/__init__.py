"""Parts of the quantization benchmarks; the scripts are one folder up."""
