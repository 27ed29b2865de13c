"""The arithmetic: moments, PCA, probe and gates. No I/O."""
