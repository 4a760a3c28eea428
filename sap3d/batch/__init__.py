"""Many objects: jobs, the engines that run them (this machine, a Ray cluster), the live table and the summary."""
