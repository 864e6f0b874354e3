"""Sources whose stream is made of runs, as people use them: a run now, a service that does them, a trial."""
