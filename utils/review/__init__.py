"""What a person sees: read rankings, run and detection first, then suspects, figures and page."""
