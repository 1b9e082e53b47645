"""Training: read trainer first, then checkpoint; learning_rate, log, dynamics and export serve both."""
