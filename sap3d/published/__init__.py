"""The published weights of Zero-1-to-3: reading files without executing code, naming, strict conversion."""
