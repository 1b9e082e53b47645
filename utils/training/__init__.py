"""Training: read trainer first, then checkpoint; learning_rate, log and dynamics serve both."""
