"""What a person sees: read rankings and detection first, then suspects, figures and page."""
